import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsg.convert import resident
from lsg.convert.checkpoint import Checkpoint, Tensor
from lsg.convert.schedule import plan_resident


@pytest.mark.parametrize("file_bytes", [1, 64, 10**9])
@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_tensors_of_every_kind_survive(tmp_path, monkeypatch, file_bytes, chunk_bytes):
    monkeypatch.setattr(resident, "_CHUNK_BYTES", chunk_bytes)
    tensors = {
        "odd_u8": torch.arange(5, dtype=torch.uint8),
        "f32": torch.randn(3, 3),
        "bf16": torch.randn(7, 3).bfloat16(),
        "f8": torch.randn(3).to(torch.float8_e4m3fn),
        "i64": torch.arange(3),
        "flag": torch.tensor([True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "ünïcode": torch.ones(2),
    }
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "config.json").write_text("{}")
    names = list(tensors)
    for shard in ("a", "b"):
        half = names[::2] if shard == "a" else names[1::2]
        save_file({name: tensors[name] for name in half}, source / f"{shard}.safetensors")
    weight_map = {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(names)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    advanced = []
    with Checkpoint(source) as checkpoint:
        plans = plan_resident(checkpoint.tensors.values(), file_bytes)
        for plan in plans:
            for shard in {tensor.shard for tensor in plan.tensors}:
                resident.write_part(checkpoint, plan, shard, out, advanced.append)
            assert resident.file_bytes(plan) == (out / plan.name).stat().st_size
        resident.write_index(plans, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(advanced) == sum(t.nbytes for t in tensors.values())
    for name, tensor in tensors.items():
        found = load_file(out / index["weight_map"][name])[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_small_files_are_what_a_model_needs_besides_weights(tmp_path):
    wanted = [
        "LICENSE",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "modeling_custom.py",
        "tokenizer.model",
    ]
    unwanted = [
        ".cache/huggingface/x.json",
        ".gitattributes",
        "model.safetensors",
        "model.safetensors.index.json",
        "original/consolidated.pth",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]
    for name in wanted + unwanted:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = resident.small_files(tmp_path / "in")
    assert [str(path) for path in found] == wanted
    resident.copy_small_files(tmp_path / "in", found, tmp_path / "out", quantized=True)
    assert {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    } == set(wanted)
    assert (tmp_path / "out" / "config.json").read_text() == "config.json"


@pytest.mark.parametrize(("dtype", "quantized"), [("F8_E4M3", True), ("I32", True), ("BF16", False)])
def test_configs_describe_a_quantisation_while_something_has_it(tmp_path, dtype, quantized):
    tensors = [Tensor("a", "BF16", (2,), "s", 0, 4), Tensor("ids", "I64", (1,), "s", 4, 8)]
    tensors.append(Tensor("b", dtype, (2,), "s", 12, 2 if dtype == "F8_E4M3" else 8))
    assert resident.is_quantized(plan_resident(tensors, 10**9)) is quantized
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    config = {
        "a": "ü",
        "quantization_config": {"bits": 4},
        "text_config": {"b": 1, "quantization_config": {}},
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "hf_quant_config.json").write_text("{}")
    resident.copy_small_files(source, resident.small_files(source), out, quantized=quantized)
    left = config if quantized else {"a": "ü", "text_config": {"b": 1}}
    assert json.loads((out / "config.json").read_text()) == left
    assert (out / "hf_quant_config.json").exists() is quantized


def test_a_config_without_quantisation_keeps_its_bytes(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "config.json").write_text('{"a":1.0e5}')
    resident.copy_small_files(source, resident.small_files(source), out, quantized=False)
    assert (out / "config.json").read_text() == '{"a":1.0e5}'
