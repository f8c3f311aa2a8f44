"""What a user sees: one sentence for each thing that goes wrong, and nothing left that looks finished."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsg import CapacityError
from lsg.convert import direct
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.workdir import partial_of

SECOND = "model-00002-of-00003.safetensors"


def edit_experts(source, edit):
    for path in source.glob("*.safetensors"):
        save_file(
            {name: edit(name, t) if ".experts." in name else t for name, t in load_file(path).items()}, path
        )


def missing_shard(source):
    (source / SECOND).unlink()
    return f"{SECOND}: missing"


def truncated_shard(source):
    os.truncate(source / SECOND, (source / SECOND).stat().st_size // 2)
    return f"{SECOND}: truncated"


def float_experts(source):
    edit_experts(source, lambda _, tensor: tensor.float())
    return "(F32 [96, 80]) is an expert of a kind that this lsg-convert does not read"


def int8_expert(source):
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    edit_experts(source, lambda found, tensor: tensor.to(torch.int8) if found == name else tensor)
    return f"{name} is I8, expected BF16"


def dense_model(source):
    config = json.loads((source / "config.json").read_text())
    del config["num_experts"]
    (source / "config.json").write_text(json.dumps(config))
    return "not a mixture of experts"


def missing_expert(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_experts": 5}))
    return "model.layers.0.mlp.experts.4.gate_proj.weight is missing"


def wrong_shape(source):
    edit_experts(source, lambda _, tensor: tensor[:, :-2].contiguous())
    return "has shape [80, 94]"


def only_pickles(source):
    for path in source.glob("*.safetensors*"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
    return "only pickled weights"


def repacked_source(source):
    (source / "experts").mkdir()
    (source / "experts" / "manifest.json").write_text("{}")
    return "already a repacked model directory"


def no_source(source):
    shutil.rmtree(source)
    return "not a directory"


def assert_failed(result, sentence, code=1):
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    failure = [line for line in result.stderr.splitlines() if not line.startswith("converting")]
    assert len(failure) == 1, failure
    assert failure[0].startswith("lsg-convert: ")
    assert sentence in failure[0]


@pytest.mark.parametrize("experts", ["int4", "bf16"])
@pytest.mark.parametrize(
    "damage",
    [
        missing_shard,
        truncated_shard,
        float_experts,
        int8_expert,
        dense_model,
        missing_expert,
        wrong_shape,
        only_pickles,
        repacked_source,
        no_source,
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(convert, source, tmp_path, damage, experts):
    sentence = damage(source)
    before = set(tmp_path.iterdir())
    assert_failed(convert(source, tmp_path / "out", "--experts", experts), sentence)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "make", [lambda p: p.mkdir(), lambda p: p.write_text(""), lambda p: p.symlink_to("x")]
)
def test_an_existing_output_is_refused_and_kept(convert, pristine, tmp_path, make):
    make(tmp_path / "out")
    before = (tmp_path / "out").lstat()
    assert_failed(convert(pristine, tmp_path / "out", "--experts", "bf16"), "out: already exists")
    assert (tmp_path / "out").lstat() == before


def test_an_output_inside_the_source(convert, source):
    assert_failed(convert(source, source / "out", "--experts", "bf16"), "lies inside the source directory")


def test_an_output_in_a_directory_that_is_not_there(convert, pristine, tmp_path):
    result = convert(pristine, tmp_path / "no" / "out", "--experts", "bf16")
    assert_failed(result, "no: not a directory; create it first")


@pytest.mark.parametrize("option", [["--stream"], ["--revision", "main"]])
def test_options_for_the_hub_are_not_for_directories(convert, pristine, tmp_path, option):
    result = convert(pristine, tmp_path / "out", "--experts", "int4", *option)
    assert result.exit_code == 2
    assert "are for models on the Hub" in result.stderr


def test_a_damaged_shard_costs_only_what_came_from_it(convert, source, pristine, tmp_path, tree_hash):
    with Checkpoint(source) as checkpoint:
        tensor = checkpoint.tensors["model.layers.1.mlp.experts.3.down_proj.weight"]
        of_shard = {
            t.name.rpartition(".experts.")[::2]
            for t in checkpoint.tensors.values()
            if t.shard == tensor.shard and ".experts." in t.name
        }
    lost = {(prefix, rest.split(".")[0]) for prefix, rest in of_shard}
    with (source / tensor.shard).open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\x7f")
    out = tmp_path / "out"
    failed = convert(source, out, "--experts", "int4", "--threads", "1")
    assert_failed(failed, f"{tensor.shard}: {tensor.name} has NaN or infinite weights")
    assert "download it again; what is done is kept: run the same command again" in failed.stderr
    assert not out.exists()
    shutil.copyfile(pristine / tensor.shard, source / tensor.shard)
    result = convert(source, out, "--experts", "int4", "--json")
    assert result.exit_code == 0, result.stderr
    assert 0 < json.loads(result.stdout.splitlines()[-1])["slabs_kept"] == 8 - len(lost)
    assert convert(pristine, tmp_path / "fresh", "--experts", "int4").exit_code == 0
    assert tree_hash(out) == tree_hash(tmp_path / "fresh")


def test_fp16_overflow_names_the_tensor(convert, source, tmp_path):
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    edit_experts(source, lambda found, tensor: tensor * 1e30 if found == name else tensor)
    result = convert(source, tmp_path / "out", "--experts", "fp16")
    assert_failed(result, "model.layers.0.mlp.experts.1.up_proj: a weight of")
    assert not partial_of(tmp_path / "out").exists()


def test_too_little_room_is_said_before_anything_is_written(convert, pristine, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = convert(pristine, tmp_path / "out", "--experts", "int4", "-v")
    assert result.exit_code == 1
    assert CapacityError.__name__ in result.stderr
    assert "takes 0.4 MB, but only 0.3 MB are free" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "call"),
    [(os, "posix_fallocate"), (os, "pwrite"), (os, "fdatasync"), (direct, "write_rows")],
)
def test_a_full_disk_keeps_what_is_done(convert, pristine, tmp_path, tree_hash, monkeypatch, module, call):
    out = tmp_path / "out"
    calls = 0

    def fail(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    real = getattr(module, call)
    with monkeypatch.context() as patch:
        patch.setattr(module, call, fail)
        result = convert(pristine, out, "--experts", "int4", "--threads", "1")
    assert_failed(result, "disk full")
    assert not out.exists()
    assert convert(pristine, out, "--experts", "int4").exit_code == 0
    assert convert(pristine, tmp_path / "fresh", "--experts", "int4").exit_code == 0
    assert tree_hash(out) == tree_hash(tmp_path / "fresh")


def test_a_read_error_is_one_sentence(convert, pristine, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    result = convert(pristine, tmp_path / "out", "--experts", "int4")
    assert_failed(result, f".safetensors: {os.strerror(errno.EIO)}")


def test_tracebacks_are_for_those_who_ask(convert, source, tmp_path):
    dense_model(source)
    assert "Traceback" in convert(source, tmp_path / "out", "--experts", "int4", "-v").stderr


def test_usage_errors_exit_with_2(convert, pristine, tmp_path):
    for options in (["--experts", "int3"], [], ["--experts", "int4", "--threads", "0"]):
        result = convert(pristine, tmp_path / "out", *options)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr


def test_json_lines_end_in_a_summary(convert, pristine, tmp_path):
    result = convert(pristine, tmp_path / "out", "--experts", "int4", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    *progress, summary = (json.loads(line) for line in result.stdout.splitlines())
    assert {event["event"] for event in progress} == {"progress"}
    assert summary["event"] == "summary"
    assert (summary["layers"], summary["slabs"], summary["slabs_kept"]) == (2, 8, 0)
    assert summary["expert_bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.lsgb"))
    assert summary["converted_bytes"] == progress[0]["total_bytes"]
    assert 0 < summary["worst_error"] < 0.02


def test_the_result_is_one_sentence(convert, pristine, tmp_path):
    result = convert(pristine, tmp_path / "out", "--experts", "bf16")
    assert result.stdout.startswith(f"{tmp_path / 'out'}: 8 experts in 2 layers as bf16 (")
    assert result.stderr == "converting 569.2 kB\n"
