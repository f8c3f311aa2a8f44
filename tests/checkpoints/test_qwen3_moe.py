"""The generated checkpoints are what the tests that use them take them for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints import make_checkpoint
from checkpoints.demo import per_expert
from checkpoints.hf import transformers


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_transformers_loads_the_same_tensors(tmp_path: Path, dtype: str) -> None:
    disk = tensors_of(make_checkpoint(tmp_path, dtype=dtype, layers=3, dense_layers=[1]))
    assert {tensor.dtype for tensor in disk.values()} == {getattr(torch, dtype)}
    assert disk["model.layers.2.mlp.experts.7.down_proj.weight"].shape == (64, 48)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    loaded = per_expert(model.state_dict())
    assert loaded.keys() == disk.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, disk[name].bfloat16()), name


def test_index_places_every_tensor(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, shards=3)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: set(load_file(tmp_path / file)) for file in sorted(set(weight_map.values()))}
    assert sorted(files) == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(weight_map.items()) == sorted(
        (name, file) for file, names in files.items() for name in names
    )


def test_every_expert_of_a_random_checkpoint_shows(tmp_path: Path) -> None:
    """Log-probabilities move when an expert is removed, or tests that compare them would prove nothing."""
    make_checkpoint(tmp_path, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 259)[None]
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        assert before.max(-1).values.mean() > -4, "the outputs are nearly uniform"
        for layer in model.model.layers:
            for expert in range(8):
                kept = layer.mlp.experts.down_proj[expert].clone()
                layer.mlp.experts.down_proj[expert].zero_()
                assert (model(ids).logits.log_softmax(-1) - before).abs().max() > 0.5
                layer.mlp.experts.down_proj[expert] = kept


def test_tokenizer_round_trips_and_chats(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Zwölf Boxkämpfer\n\tjagen\x00 42 🦊"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
