"""The finished directory as a whole."""

import json

import pytest
import torch
from safetensors.torch import load_file

from checkpoints import make_checkpoint
from lsg import manifest

INDEX = "model.safetensors.index.json"


def load_indexed(directory):
    files = set(json.loads((directory / INDEX).read_text())["weight_map"].values())
    assert files == {path.name for path in directory.glob("*.safetensors")}
    return {name: tensor for file in files for name, tensor in load_file(directory / file).items()}


def test_the_rest_of_the_model_is_unchanged(convert, pristine, tmp_path):
    out = tmp_path / "out"
    assert convert(pristine, out, "--experts", "int4").exit_code == 0
    before, after = load_indexed(pristine), load_indexed(out)
    assert set(after) == {name for name in before if ".experts." not in name}
    assert all(torch.equal(after[name], before[name]) for name in after)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (pristine / name).read_bytes()
    assert not (tmp_path / "out.partial").exists()


def test_manifest(convert, pristine, tmp_path):
    out = tmp_path / "out"
    assert convert(pristine, out, "--experts", "int4", "--no-search").exit_code == 0
    found = manifest.load(out)
    assert found.source == manifest.Source(model="tiny-moe", revision=None, format="bf16")
    assert found.options == {"experts": "int4", "search": False}
    assert (found.architecture, found.model_type, found.top_k) == ("Qwen3MoeForCausalLM", "qwen3_moe", 2)
    assert found.layers[0].activation == manifest.ActivationSpec(kind="silu", alpha=1.0, limit=0.0)
    assert [layer.index for layer in found.layers] == [0, 1]
    layer = found.layers[1]
    assert layer.prefix == "model.layers.1.mlp.experts"
    assert (layer.num_experts, layer.hidden_size, layer.intermediate_size) == (4, 96, 80)
    assert layer.gate_up == layer.down == manifest.Panel("int4", "bf16", 1, 32, False, False, False, False)


def test_lossless_layers_have_no_error(convert, pristine, tmp_path):
    assert convert(pristine, tmp_path / "out", "--experts", "bf16").exit_code == 0
    found = manifest.load(tmp_path / "out")
    assert found.options == {"experts": "bf16"}
    assert [layer.error for layer in found.layers] == [None, None]


@pytest.mark.parametrize("experts", ["int4", "bf16"])
def test_the_same_bytes_on_any_number_of_threads(convert, pristine, tmp_path, tree_hash, experts):
    trees = []
    for threads in ("1", "3"):
        out = tmp_path / threads
        assert convert(pristine, out, "--experts", experts, "--threads", threads).exit_code == 0
        trees.append(tree_hash(out))
    assert trees[0] == trees[1]


def test_dense_layers_stay_resident(convert, tmp_path):
    source = make_checkpoint(tmp_path / "in", layers=3, dense_layers=[1], shards=1)
    assert convert(source, tmp_path / "out", "--experts", "bf16").exit_code == 0
    assert [layer.index for layer in manifest.load(tmp_path / "out").layers] == [0, 2]
    assert "model.layers.1.mlp.up_proj.weight" in load_indexed(tmp_path / "out")
