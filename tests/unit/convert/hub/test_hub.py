"""A model on the Hub becomes the same directory as its files on the disk, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from unit.convert.hub.conftest import FIRST, MODEL, SECOND

from checkpoints import make_checkpoint
from checkpoints.shards import write_shards
from lsg import manifest
from lsg.convert.workdir import partial_of

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
MANIFEST = "experts/manifest.json"
CHUNK, DROPPED_AT = 10 << 20, 11 << 20


@pytest.fixture(scope="module")
def expected(convert, pristine, tmp_path_factory, tree_hash):
    """Digests of what the same checkpoint in a directory becomes; its manifest names another source."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert convert(pristine, out, "--experts", "int4").exit_code == 0
    return without_manifest(tree_hash(out))


def without_manifest(tree):
    return {name: digest for name, digest in tree.items() if name != MANIFEST}


def failure(result):
    assert result.returncode == 1, result.stderr
    return result.stderr.splitlines()[-1]


def whole_gets(server):
    """GETs of weights that are not for a header."""
    return [name for name in SHARDS for asked in server.gets(name) if not asked.startswith("bytes=0-")]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_hub_id(run, server, tmp_path, tree_hash, expected, stream):
    out = tmp_path / "out"
    result = run(MODEL, out, "--experts", "int4", *stream)
    assert result.returncode == 0, result.stderr
    assert without_manifest(tree_hash(out)) == expected
    assert manifest.load(out).source == manifest.Source(model=MODEL, revision=FIRST, format="bf16")
    assert whole_gets(server) == SHARDS
    assert not partial_of(out).exists()
    cached = {path.name for path in (tmp_path / "hf").rglob("*.safetensors")}
    assert cached == (set() if stream else set(SHARDS))
    assert not list((tmp_path / "hf").rglob("*.part"))


def test_stream_and_no_stream_give_the_same_bytes(run, tmp_path, tree_hash):
    for name, stream in (("a", []), ("b", ["--stream"])):
        assert (
            run(
                MODEL, tmp_path / name, "--experts", "int4", *stream, HF_HOME=str(tmp_path / f"hf-{name}")
            ).returncode
            == 0
        )
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def test_experts_that_lie_across_shards(run, server, convert, pristine, tmp_path, tree_hash):
    tensors = {name: tensor for shard in SHARDS for name, tensor in load_file(pristine / shard).items()}
    scattered = tmp_path / "moe"
    shutil.copytree(pristine, scattered, ignore=shutil.ignore_patterns("*.safetensors*"))
    # All gates, then all ups, then all downs: every expert needs several shards, none can go early.
    write_shards(scattered, dict(sorted(tensors.items(), key=lambda item: item[0].split(".")[-2:])), 5)
    server.repositories[MODEL].commits[FIRST] = scattered
    result = run(MODEL, tmp_path / "out", "--experts", "int4", "--stream")
    assert result.returncode == 0, result.stderr
    assert convert(scattered, tmp_path / "local", "--experts", "int4").exit_code == 0
    assert without_manifest(tree_hash(tmp_path / "out")) == without_manifest(tree_hash(tmp_path / "local"))


def test_the_cache_serves_a_second_run_and_one_without_a_connection(run, server, tmp_path, tree_hash):
    assert run(MODEL, tmp_path / "a", "--experts", "int4").returncode == 0
    server.requests.clear()
    assert run(MODEL, tmp_path / "b", "--experts", "int4").returncode == 0
    assert whole_gets(server) == []
    server.requests.clear()
    offline = run(MODEL, tmp_path / "c", "--experts", "int4", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert f"using commit {FIRST} from the cache" in offline.stderr
    assert server.requests == []
    unplugged = run(MODEL, tmp_path / "d", "--experts", "int4", HF_ENDPOINT="http://127.0.0.1:9")
    assert unplugged.returncode == 0, unplugged.stderr
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b") == tree_hash(tmp_path / "c")


def test_stream_takes_from_the_cache_what_is_there_and_leaves_it_there(run, server, tmp_path, tree_hash):
    assert run(MODEL, tmp_path / "a", "--experts", "int4").returncode == 0
    second = next((tmp_path / "hf").rglob(SHARDS[1]))
    second.resolve().unlink()
    second.unlink()
    server.requests.clear()
    assert run(MODEL, tmp_path / "b", "--experts", "int4", "--stream").returncode == 0
    assert whole_gets(server) == [SHARDS[1]]
    assert {path.name for path in (tmp_path / "hf").rglob("*.safetensors")} == {SHARDS[0], SHARDS[2]}
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_headers_are_judged_before_any_weight_is_downloaded(run, server, source, tmp_path, stream):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_experts": 5}))
    server.repositories[MODEL].commits[FIRST] = source
    message = failure(run(MODEL, tmp_path / "out", "--experts", "int4", *stream))
    assert "model.layers.0.mlp.experts.4.gate_proj" in message
    assert whole_gets(server) == []
    assert not partial_of(tmp_path / "out").exists()


@pytest.fixture(scope="module")
def large(convert, tmp_path_factory, tree_hash):
    """Shards of more than the library's chunk: whole chunks are what survives a broken connection."""
    root = tmp_path_factory.mktemp("large")
    source = make_checkpoint(root / "in", layers=2, hidden=512, intermediate=512, experts=12, shards=3)
    assert all((source / name).stat().st_size > DROPPED_AT for name in SHARDS)
    assert convert(source, root / "out", "--experts", "int4").exit_code == 0
    return source, without_manifest(tree_hash(root / "out"))


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_dropped_connection_is_resumed(run, server, large, tmp_path, tree_hash, stream):
    server.repositories[MODEL].commits[FIRST], expected = large
    server.faults[SHARDS[1]] = [("drop", DROPPED_AT)]
    result = run(MODEL, tmp_path / "out", "--experts", "int4", *stream)
    assert result.returncode == 0, result.stderr
    assert server.gets(SHARDS[1])[1:] == ["", f"bytes={CHUNK}-"]
    assert without_manifest(tree_hash(tmp_path / "out")) == expected


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_the_next_run_continues_what_a_failed_one_has_downloaded(
    run, server, large, tmp_path, tree_hash, stream
):
    server.repositories[MODEL].commits[FIRST], expected = large
    out = tmp_path / "out"
    server.faults[SHARDS[2]] = [("drop", DROPPED_AT), ("status", 403)]
    message = failure(run(MODEL, out, "--experts", "int4", *stream))
    assert message.startswith(f"lsg-convert: {MODEL}: ")
    assert not out.exists()
    done = whole_gets(server).count(SHARDS[0])
    server.requests.clear()
    assert run(MODEL, out, "--experts", "int4", *stream).returncode == 0
    assert server.gets(SHARDS[2])[-1] == f"bytes={CHUNK}-"
    assert (done, whole_gets(server).count(SHARDS[0])) == (1, 0)
    assert without_manifest(tree_hash(out)) == expected


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_shard_that_fails_its_checksum(run, server, tmp_path, tree_hash, expected, stream):
    out = tmp_path / "out"
    server.faults[SHARDS[2]] = [("corrupt", 60_000), ("corrupt", 60_000)]
    message = failure(run(MODEL, out, "--experts", "int4", *stream))
    assert f"{SHARDS[2]} arrived twice with another checksum than the Hub lists" in message
    assert not out.exists()
    kept = set(SHARDS) if stream else {path.name for path in (tmp_path / "hf").rglob("*.safetensors")}
    server.faults[SHARDS[2]] = [("corrupt", 60_000)]
    server.requests.clear()
    result = run(MODEL, out, "--experts", "int4", "--json", *stream)
    assert result.returncode == 0, result.stderr
    # Damaged once, it was downloaded again at once; the other shards were not, unless the first run stopped
    # while they were under way.
    assert whole_gets(server) == [name for name in SHARDS[:2] if name not in kept] + [SHARDS[2], SHARDS[2]]
    assert without_manifest(tree_hash(out)) == expected
    if stream:
        assert json.loads(result.stdout.splitlines()[-1])["slabs_kept"] > 0


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_killed_at_any_time_it_is_continued(environment, run, server, tmp_path, tree_hash, expected, stream):
    for number in range(5):
        out = tmp_path / f"out{number}"
        home = {"HF_HOME": str(tmp_path / f"hf{number}")}
        server.requests.clear()
        command = [sys.executable, "-m", "lsg.convert.cli", MODEL, str(out), "--experts", "int4", *stream]
        process = subprocess.Popen(command, env=environment | home, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(whole_gets(server)) < 1 + number % 3:
            time.sleep(0.002)
        time.sleep(0.01 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if not out.exists():
            again = run(MODEL, out, "--experts", "int4", *stream, **home)
            assert again.returncode == 0, again.stderr
        assert without_manifest(tree_hash(out)) == expected


def test_a_branch_that_moves_does_not_change_a_conversion_that_has_begun(
    run, server, source, tmp_path, tree_hash, expected
):
    out = tmp_path / "out"
    server.faults[SHARDS[2]] = [("status", 403)]
    failure(run(MODEL, out, "--experts", "int4", "--stream"))
    (source / "README.md").write_text("a new commit")
    server.repositories[MODEL].commits[SECOND] = source
    server.repositories[MODEL].refs["main"] = SECOND
    message = failure(run(MODEL, out, "--experts", "int4", "--revision", SECOND))
    assert f"an unfinished conversion with {MODEL} at {FIRST} instead of {MODEL} at {SECOND}" in message
    assert run(MODEL, out, "--experts", "int4", "--stream").returncode == 0
    assert manifest.load(out).source.revision == FIRST
    assert without_manifest(tree_hash(out)) == expected
    assert run(MODEL, tmp_path / "new", "--experts", "int4").returncode == 0
    assert manifest.load(tmp_path / "new").source.revision == SECOND


def test_a_named_revision(run, server, tmp_path):
    server.repositories[MODEL].refs["v1"] = FIRST
    server.repositories[MODEL].refs.pop("main")
    assert run(MODEL, tmp_path / "out", "--experts", "int4", "--revision", "v1").returncode == 0
    assert "has no revision v2" in failure(
        run(MODEL, tmp_path / "b", "--experts", "int4", "--revision", "v2")
    )


def test_models_that_are_not_there(run, server, tmp_path):
    message = failure(run("tiny/none", tmp_path / "out", "--experts", "int4"))
    assert f"tiny/none: neither a directory here nor a model on {server.endpoint}" in message
    message = failure(run(MODEL, tmp_path / "out", "--experts", "int4", HF_HUB_OFFLINE="1"))
    assert "and HF_HUB_OFFLINE is set" in message


def test_a_gated_model(run, server, tmp_path):
    server.gated.add(MODEL)
    message = failure(run(MODEL, tmp_path / "out", "--experts", "int4"))
    assert (
        f"{MODEL}: gated; accept its terms on {server.endpoint}/{MODEL}, then run: hf auth login" in message
    )


def test_a_model_of_one_file(run, server, tmp_path):
    single = make_checkpoint(tmp_path / "single", shards=1)
    server.repositories[MODEL].commits[FIRST] = single
    assert run(MODEL, tmp_path / "out", "--experts", "bf16", "--stream").returncode == 0


def test_push(run, server, tmp_path):
    out = tmp_path / "out"
    arguments = (MODEL, out, "--experts", "int4", "--push-to-hub", "me/moe-int4")
    first = run(*arguments, HF_TOKEN="hf_secret")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0] == f"{server.endpoint}/me/moe-int4"
    assert "hf_secret" not in first.stdout + first.stderr
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert server.uploads["me/moe-int4"].files == files
    # Another run converts nothing and sends no file again.
    server.requests.clear()
    shutil.rmtree(tmp_path / "hf")
    assert run(*arguments, HF_TOKEN="hf_secret").returncode == 0
    assert not [path for method, path, _ in server.requests if method == "PUT" or "resolve" in path]


def test_a_push_that_fails_leaves_the_directory_and_says_what_to_do(run, tmp_path):
    message = failure(run(MODEL, tmp_path / "out", "--experts", "int4", "--push-to-hub", "no/such/name"))
    assert "not uploaded" in message
    assert manifest.load(tmp_path / "out").source.model == MODEL
