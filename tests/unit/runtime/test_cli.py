import json
import os
import re
import sys
from dataclasses import replace

import machines
import pytest
from click.testing import CliRunner

from lsg._core import isa_levels
from lsg.runtime import cli, host


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """No setting of whoever runs the tests, and no GPU."""
    for name in [
        name for name in os.environ if name.startswith(("LSG_", "LVLLM_", "LK_", "OMP_", "SGLANG_"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(host, "gpu_count", lambda: 0)


@pytest.fixture
def executed(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def run(*arguments, **environ):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], env=environ)


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def no_manifest(directory):
    (directory / "experts/manifest.json").unlink()


def newer_manifest(directory):
    edit(directory / "experts/manifest.json", version=2, novelty=True)


def newer_layer(directory):
    overwrite(directory / "experts/layer-00000.lsgb", 8, (2).to_bytes(4, "little"))


def garbled_manifest(directory):
    (directory / "experts/manifest.json").write_text('{"magic": "lsg-experts", ')


def swapped_layers(directory):
    first, second = (directory / f"experts/layer-0000{index}.lsgb" for index in (0, 1))
    first.rename(directory / "x")
    second.rename(first)
    (directory / "x").rename(second)


def missing_layer(directory):
    (directory / "experts/layer-00001.lsgb").unlink()


def truncated_layer(directory):
    path = directory / "experts/layer-00001.lsgb"
    os.truncate(path, path.stat().st_size - 4096)


def no_config(directory):
    no_manifest(directory)
    (directory / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_manifest, ["without a single expert tensor", "experts/manifest.json"]),
        (no_config, ["not a model directory", "config.json"]),
        (newer_manifest, ["format version 2", "upgrade lsg"]),
        (newer_layer, ["layer-00000.lsgb", "version"]),
        (garbled_manifest, ["not a readable manifest"]),
        (swapped_layers, ["layer-00000.lsgb", "header"]),
        (missing_layer, ["layer-00001.lsgb", "missing"]),
        (truncated_layer, ["layer-00001.lsgb"]),
    ],
)
def test_a_spoilt_directory_is_one_sentence(spoil, words, spoilt, executed):
    spoil(spoilt)
    result = run(spoilt, "--port", "1")
    assert_refused(result, words)
    assert not executed


def assert_refused(result, words):
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lsg-serve: ")
    for word in words:
        assert word in lines[0]


def test_check_finds_a_flipped_bit_that_a_start_does_not_read(spoilt, executed):
    path = spoilt / "experts/layer-00000.lsgb"
    byte = path.read_bytes()[5000]
    overwrite(path, 5000, bytes([byte ^ 1]))
    assert run(spoilt, "--dry-run").exit_code == 0
    result = run(spoilt, "--check")
    assert_refused(result, ["layer-00000.lsgb", "checksum", "expert 0"])
    assert not executed


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--no-hybrid"], {}, ["--no-hybrid"]),
        ([], {"LVLLM_MOE_NUMA_ENABLED": "0"}, ["--no-hybrid"]),
        (["--resident-layers", "0-3"], {}, ["--resident-layers", "later version"]),
        ([], {"LVLLM_MOE_USE_WEIGHT": "TO_DTYPE"}, ["its experts are int4", "lsg-convert --experts bf16"]),
        ([], {"LSG_NONSENSE": "1"}, ["LSG_NONSENSE", "no such setting"]),
        (["--threads", "9999"], {}, ["9999 threads", "choose --threads"]),
        (["--model-path", "x"], {}, ["named twice"]),
    ],
)
def test_what_cannot_be_obeyed_is_one_sentence(arguments, environ, words, repacked, executed):
    assert_refused(run(repacked, *arguments, **environ), words)
    assert not executed


def test_an_isa_that_the_processor_lacks_is_refused(repacked):
    if len(isa_levels()) == 6:
        pytest.skip("this processor has every level")
    assert_refused(run(repacked, LSG_ISA="amx"), ["amx"])


def test_too_little_memory_is_refused(repacked, monkeypatch):
    monkeypatch.setattr(host, "observe", lambda: replace(machines.host([1]), memory_available_bytes=1000))
    assert_refused(run(repacked), ["needs 0.0 GB", "available"])


def test_verbose_shows_where_it_came_from(spoilt):
    missing_layer(spoilt)
    assert "Traceback" in run(spoilt, "-v").stderr


def test_a_directory_that_is_not_there_is_a_usage_error(tmp_path):
    assert run(tmp_path / "nothing").exit_code == 2


def test_it_becomes_sglang_with_the_users_arguments(repacked, executed):
    arguments = ["--port", "8000", "--served-model-name=x", "--trust-remote-code", "--stop", "-7"]
    result = run(repacked, "--threads", "1", *arguments, LK_THREADS="2", PYTHONPATH="/mine")
    assert result.exit_code == 0
    [(program, argv, environ)] = executed
    assert program == argv[0] == sys.executable
    assert argv[1:5] == ["-m", "sglang.launch_server", "--model-path", str(repacked)]
    assert argv[-len(arguments) :] == arguments
    assert environ["LSG_THREADS"] == "1"
    assert environ["LSG_LOAD"] in ("map", "huge"), "one decision for all processes"
    assert "LK_THREADS" not in environ
    assert environ["PYTHONPATH"].endswith(os.pathsep + "/mine")
    assert "2 layers of 4 experts, int4" in result.stderr


def test_a_dry_run_starts_nothing(repacked, executed):
    result = run(repacked, "--dry-run", "--activations", "float")
    assert result.exit_code == 0
    assert "float activations" in result.stderr
    assert re.search(r"load +(map|huge): ", result.stderr)
    assert "sglang.launch_server" in result.stderr
    assert not executed


def test_a_plan_for_programs(repacked, executed):
    result = run(repacked, "--json", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert plan["event"] == "plan"
    assert plan["experts"].startswith("2 layers of 4 experts, int4")
    run(repacked, "--json")
    assert executed[0][2]["LSG_JSON"] == "1"


def test_an_ordinary_directory_goes_to_sglang(checkpoint, executed):
    result = run(checkpoint, "--port", "1")
    assert result.exit_code == 0, result.stderr
    assert "sglang serves it alone" in result.stderr
    assert executed[0][1][-2:] == ["--port", "1"]


def test_no_plugin_no_start(repacked, executed, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    assert_refused(run(repacked), ["would not find lsg"])
    assert not executed
