import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lsg import CheckpointError
from lsg.convert.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"


def test_every_tensor_has_the_bytes_that_the_library_reads(pristine):
    with Checkpoint(pristine) as checkpoint:
        seen = {}
        for shard in checkpoint.shards:
            for name, value in load_file(pristine / shard.name).items():
                tensor = checkpoint.tensors[name]
                assert (tensor.shard, tensor.shape) == (shard.name, tuple(value.shape))
                expected = value.contiguous().view(torch.uint8).numpy().reshape(-1)
                np.testing.assert_array_equal(checkpoint.read(tensor), expected)
                seen[name] = tensor
        assert seen == checkpoint.tensors


def test_a_part_of_a_tensor(pristine):
    with Checkpoint(pristine) as checkpoint:
        tensor = checkpoint.tensors["lm_head.weight"]
        part = bytearray(100)
        checkpoint.read_into(tensor, 50, memoryview(part))
        assert bytes(part) == checkpoint.read(tensor)[50:150].tobytes()


@pytest.fixture
def large(tmp_path):
    """A checkpoint of one tensor, large enough to be mapped; its number 0 lies inside a page."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.arange(1 << 20)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("mapped", [True, False])
def test_a_large_tensor(large, monkeypatch, mapped):
    if not mapped:
        monkeypatch.setattr("lsg.convert.checkpoint.map_range", lambda *_, **__: None)
    with Checkpoint(large) as checkpoint:
        whole = checkpoint.read(checkpoint.tensors["a"])
        part = checkpoint.read(checkpoint.tensors["a"], 8 << 16, 4 << 20)
    # Both outlive the file's being open.
    np.testing.assert_array_equal(whole.view(np.int64), np.arange(1 << 20))
    np.testing.assert_array_equal(part.view(np.int64), np.arange(1 << 16, (1 << 16) + (1 << 19)))
    assert part.flags.owndata is not mapped


@pytest.mark.parametrize("missing", [1, 5000, 1 << 22])
def test_a_large_tensor_that_shrinks(large, missing):
    with Checkpoint(large) as checkpoint:
        os.truncate(large / "model.safetensors", (large / "model.safetensors").stat().st_size - missing)
        with pytest.raises(CheckpointError, match="ended inside a"):
            checkpoint.read(checkpoint.tensors["a"])


def test_one_file_needs_no_index(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "consolidated.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_a_tensor_that_the_index_forgot_is_kept(source):
    index = json.loads((source / INDEX).read_text())
    del index["weight_map"]["lm_head.weight"]
    (source / INDEX).write_text(json.dumps(index))
    with Checkpoint(source) as checkpoint:
        assert "lm_head.weight" in checkpoint.tensors


def shard(source, number):
    return source / f"model-{number:05d}-of-00003.safetensors"


def missing_shard(source):
    shard(source, 2).unlink()
    return "model-00002-of-00003.safetensors: missing"


def truncated_shard(source):
    path = shard(source, 2)
    path.write_bytes(path.read_bytes()[:-1])
    return "model-00002-of-00003.safetensors: truncated"


def lfs_pointer(source):
    shard(source, 1).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    return "model-00001-of-00003.safetensors: truncated or not a safetensors file"


def empty_shard(source):
    shard(source, 3).write_bytes(b"")
    return "model-00003-of-00003.safetensors: truncated or not a safetensors file"


def duplicate_tensor(source):
    tensors = load_file(shard(source, 3)) | {"model.embed_tokens.weight": torch.zeros(2)}
    save_file(tensors, shard(source, 3))
    return "tensor model.embed_tokens.weight is also in model-00001-of-00003.safetensors"


def index_names_unknown_tensor(source):
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["ghost"] = shard(source, 1).name
    (source / INDEX).write_text(json.dumps(index))
    return "places ghost in model-00001-of-00003.safetensors, but no shard has it"


def index_names_wrong_shard(source):
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = shard(source, 1).name
    (source / INDEX).write_text(json.dumps(index))
    return "places lm_head.weight in .*, but it is in model-00003"


def index_leaves_the_directory(source):
    (source / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    return "'../model.safetensors' is not a file name"


def index_without_map(source):
    (source / INDEX).write_text("{}")
    return "has no weight_map"


def no_index(source):
    (source / INDEX).unlink()
    return f"has safetensors shards but no {INDEX}"


def no_weights(source):
    for path in source.glob("*.safetensors*"):
        path.unlink()
    return "has no safetensors weights"


def only_pickles(source):
    no_weights(source)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
    return "only pickled weights"


def no_config(source):
    (source / "config.json").unlink()
    return "config.json: not found"


def torn_config(source):
    (source / "config.json").write_text('{"num_experts": ')
    return "config.json: not readable as JSON"


def config_is_a_list(source):
    (source / "config.json").write_text("[]")
    return "config.json: expected a JSON object, found list"


@pytest.mark.parametrize(
    "damage",
    [
        missing_shard,
        truncated_shard,
        lfs_pointer,
        empty_shard,
        duplicate_tensor,
        index_names_unknown_tensor,
        index_names_wrong_shard,
        index_leaves_the_directory,
        index_without_map,
        no_index,
        no_weights,
        only_pickles,
        no_config,
        torn_config,
        config_is_a_list,
    ],
)
def test_refuses(source, damage):
    sentence = damage(source)
    with pytest.raises(CheckpointError, match=sentence):
        Checkpoint(source)


def test_a_shard_that_shrinks_while_it_is_read(source):
    with Checkpoint(source) as checkpoint:
        last = max(checkpoint.tensors.values(), key=lambda tensor: (tensor.shard, tensor.offset))
        path = source / last.shard
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"ended inside {last.name}"):
            checkpoint.read(last)
