import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lsg import CheckpointError
from lsg._core import Dtype
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources import find_experts

VICTIM = "model.layers.1.mlp.experts.0.up_proj.weight"


def find(directory):
    checkpoint = Checkpoint(directory)
    return checkpoint, find_experts(checkpoint, MoeGeometry.from_config(checkpoint.config, "config.json"))


def change(directory, edit):
    """Apply `edit` to the tensors of the shard that holds VICTIM and bring the index up to date."""
    index_path = directory / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    shard = index["weight_map"][VICTIM]
    tensors = load_file(directory / shard)
    edit(tensors)
    save_file(tensors, directory / shard)
    kept = {name: file for name, file in index["weight_map"].items() if file != shard}
    index_path.write_text(json.dumps({"weight_map": kept | dict.fromkeys(tensors, shard)}))


def test_finds_all_experts_and_nothing_else(pristine):
    checkpoint, source = find(pristine)
    with checkpoint:
        assert [layer.index for layer in source.layers] == [0, 1]
        assert source.format == "bf16"
        assert source.tensor_names == {name for name in checkpoint.tensors if ".experts." in name}
        layer = source.layers[1]
        assert (layer.prefix, layer.num_experts) == ("model.layers.1.mlp.experts", 4)
        assert layer.gate_up.dtype == layer.down.dtype == Dtype.BF16
        found = source.read(layer, 3)
        for name, matrix in zip(found._fields, found, strict=True):
            tensor = checkpoint.tensors[f"model.layers.1.mlp.experts.3.{name}_proj.weight"]
            expected = checkpoint.read(tensor).view(np.uint16).reshape(tensor.shape)
            np.testing.assert_array_equal(matrix.codes, expected)


def test_layers_may_differ_in_dtype(source):
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.startswith("model.layers.1.mlp.experts."):
                tensors[name] = tensors[name].to(torch.float16)
        save_file(tensors, path)
    checkpoint, found = find(source)
    with checkpoint:
        assert found.format == "bf16+f16"
        assert [layer.gate_up.dtype for layer in found.layers] == [Dtype.BF16, Dtype.F16]


def _replace(value):
    return lambda tensors: tensors.update({VICTIM: value(tensors[VICTIM])})


def _rename(new):
    return lambda tensors: tensors.update({new: tensors[VICTIM].clone()})


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda tensors: tensors.pop(VICTIM), f"{VICTIM} is missing, but .* 4 experts"),
        (_replace(lambda w: w.float()), f"{VICTIM} is F32, expected BF16"),
        (_replace(lambda w: w.to(torch.int8)), f"{VICTIM} is I8, expected BF16"),
        (_replace(lambda w: w.half()), f"{VICTIM} is F16, expected BF16"),
        (_replace(lambda w: w.T.contiguous()), r"has shape \[96, 80\], expected \[80, 96\]"),
        (_rename("model.layers.1.mlp.experts.4.up_proj.weight"), "has an expert 4, .* there are 4"),
        (_rename("model.layers.1.mlp.experts.0.up_proj.weight_scale"), "weight_scale .* does not read"),
        (_rename("visual.experts.0.up_proj.weight"), "visual.experts.* does not read"),
        (
            _rename("model.layers.7.mlp.router.weight"),
            "layers.7.mlp.router.weight is a router, but .* no experts",
        ),
        (
            _rename("model.layers.7.mlp.gate.weight"),
            "layers.7.mlp.gate.weight is a router, but .* no experts",
        ),
    ],
)
def test_refuses(source, edit, sentence):
    change(source, edit)
    with pytest.raises(CheckpointError, match=sentence):
        find(source)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn])
def test_refuses_experts_of_another_format(source, dtype):
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({n: t.to(dtype) if ".experts." in n else t for n, t in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"experts\..* does not read; it reads BF16, F16, FP8"):
        find(source)


def test_refuses_a_mixture_without_experts(source):
    for path in source.glob("*.safetensors"):
        save_file({n: t for n, t in load_file(path).items() if ".experts." not in n}, path)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    names = {n: f for n, f in index["weight_map"].items() if ".experts." not in n}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="no tensor belongs to one"):
        find(source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_refuses_exactly_the_numbers_that_are_not_finite(source, dtype):
    extremes = [torch.finfo(dtype).max, torch.finfo(dtype).min, -0.0, torch.finfo(dtype).smallest_normal]

    def make(*values):
        def edit(tensors):
            for name in tensors:
                if ".experts." in name:
                    tensors[name] = tensors[name].to(dtype)
            tensors[VICTIM][1, : len(values)] = torch.tensor(values, dtype=dtype)

        for path in source.glob("*.safetensors"):
            save_file({n: t.to(dtype) if ".experts." in n else t for n, t in load_file(path).items()}, path)
        change(source, edit)
        checkpoint, found = find(source)
        with checkpoint:
            found.check(found.layers[1], 0)
            return found.read(found.layers[1], 0)

    assert make(*extremes).up.codes.shape == (80, 96)
    for bad in (float("nan"), float("inf"), float("-inf"), -float("nan")):
        with pytest.raises(CheckpointError, match=f"{VICTIM} has NaN or infinite weights"):
            make(*extremes, bad)
