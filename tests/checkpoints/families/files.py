"""Reads safetensors byte by byte, without a library that might not know a dtype.

Invariant: tensors come back exactly as stored; nothing is interpreted but the header.
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

_DTYPES: Final = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}


class Stored(NamedTuple):
    """One tensor as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def tensor(self) -> torch.Tensor:
        """Its numbers."""
        raw = torch.from_numpy(np.frombuffer(self.data, np.uint8).copy())
        return raw.view(_DTYPES[self.dtype]).reshape(self.shape)


def read_all(directory: Path) -> dict[str, Stored]:
    """Every tensor that the index places, from the shard where it is placed."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
        content = (directory / shard).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            found[name] = Stored(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
            if weight_map.get(name) != shard:
                msg = f"{directory}: {name} is in {shard}, but the index says {weight_map.get(name)}"
                raise ValueError(msg)
    return found
