"""Writes a checkpoint's tensors as published models do: numbered safetensors shards and an index.

Every tensor is in exactly one shard, shards are in tensor order, and no shard is empty.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_shards(path: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Write `tensors` into `shards` files of about equal size; a single one gets no index."""
    if shards == 1:
        save_file(_contiguous(tensors), path / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    before = 0
    for name, tensor in tensors.items():
        parts[min(shards * before // total, shards - 1)][name] = tensor
        before += tensor.nbytes
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        if not part:
            msg = f"{len(tensors)} tensors do not fill {shards} shards"
            raise ValueError(msg)
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(_contiguous(part), path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
