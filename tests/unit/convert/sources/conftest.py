"""Checkpoints of a few tensors, and the value of a matrix as FORMAT.md defines it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lsg._core import (
    Dtype,
    LayerSpec,
    Matrix,
    PanelFormat,
    ScaleDtype,
    pack_expert,
    pack_table,
    unpack_expert,
)
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources import Source, find_experts
from lsg.convert.sources.base import Expert, ExpertLayer

Tensors = Mapping[str, torch.Tensor]
TORCH = {
    Dtype.BF16: torch.bfloat16,
    Dtype.F16: torch.float16,
    Dtype.FP8_E4M3: torch.float8_e4m3fn,
    Dtype.FP8_E5M2: torch.float8_e5m2,
    ScaleDtype.F16: torch.float16,
    ScaleDtype.BF16: torch.bfloat16,
    ScaleDtype.FP8_E4M3: torch.float8_e4m3fn,
    ScaleDtype.E8M0: torch.float8_e8m0fnu,
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def floats(bits: np.ndarray, dtype: Dtype | ScaleDtype) -> np.ndarray:
    signed = bits.view(np.int16 if bits.dtype == np.uint16 else np.uint8)
    return torch.from_numpy(signed.copy()).view(TORCH[dtype]).double().numpy()


def dequantise(matrix: Matrix, panel: PanelFormat) -> np.ndarray:
    codes = matrix.codes
    rows, columns = codes.shape
    assert (matrix.scales is not None) == (panel.scale_dtype != ScaleDtype.NONE)
    if panel.dtype == Dtype.FP4_E2M1:
        value = E2M1[codes]
    elif panel.dtype in TORCH:
        value = floats(codes, panel.dtype)
    elif panel.zero_point:
        value = codes.astype(np.float64)
    else:
        value = (
            codes.astype(np.float64) - 8 if panel.dtype == Dtype.INT4 else codes.view(np.int8).astype(float)
        )

    def spread(blocks: np.ndarray) -> np.ndarray:
        wide = np.repeat(blocks, panel.scale_rows, axis=0)[:rows]
        return np.repeat(wide, panel.scale_k or columns, axis=1)[:, :columns]

    if matrix.zero_points is not None:
        value = value - spread(matrix.zero_points.astype(np.float64))
    if matrix.scales is not None:
        f32 = panel.scale_dtype == ScaleDtype.F32
        value = value * spread(
            matrix.scales.astype(np.float64) if f32 else floats(matrix.scales, panel.scale_dtype)
        )
    return value if matrix.global_scale is None else value * matrix.global_scale


def through_the_blob(layer: ExpertLayer, expert: Expert) -> Expert:
    """What pack_expert and pack_table make of it, undone."""
    spec = LayerSpec(
        layer_index=layer.index,
        num_experts=layer.num_experts,
        hidden_size=layer.hidden_size,
        intermediate_size=layer.intermediate_size,
        gated=layer.gated,
        gate_up=layer.gate_up,
        down=layer.down,
    )
    table = np.zeros(spec.table_bytes, np.uint8)
    for offset, data in pack_table(spec, 1, *expert):
        start = offset - spec.table_offset
        table[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return Expert(*unpack_expert(spec, pack_expert(spec, *expert), table, 1))


@pytest.fixture
def find(tmp_path: Path) -> Iterator[Callable[..., Source]]:
    """Writes a checkpoint and finds its experts; `experts` is what config.json says of their number."""
    with ExitStack() as stack:

        def write(tensors: Tensors, experts: int = 2, **config: Any) -> Source:
            base = {"num_experts": experts, "num_experts_per_tok": 1, "hidden_act": "silu"}
            (tmp_path / "config.json").write_text(json.dumps(base | config))
            save_file(
                {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()},
                tmp_path / "model.safetensors",
            )
            checkpoint = stack.enter_context(Checkpoint(tmp_path))
            return find_experts(checkpoint, MoeGeometry.from_config(checkpoint.config, "config.json"))

        yield write


@pytest.fixture(scope="session")
def values() -> Callable[[Source, int, int], dict[str, np.ndarray]]:
    """An expert's matrices as float64, by projection, checked to survive the blob."""

    def read(source: Source, layer_index: int, expert: int) -> dict[str, np.ndarray]:
        layer = next(layer for layer in source.layers if layer.index == layer_index)
        found = source.read(layer, expert)
        again = through_the_blob(layer, found)
        result = {}
        for name, matrix, unpacked in zip(found._fields, found, again, strict=True):
            if matrix is None:
                assert unpacked is None
                continue
            panel = layer.down if name == "down" else layer.gate_up
            result[name] = dequantise(matrix, panel)
            np.testing.assert_array_equal(dequantise(unpacked, panel), result[name])
            if matrix.bias is not None:
                result[f"{name}_bias"] = matrix.bias
                np.testing.assert_array_equal(unpacked.bias, matrix.bias)
        return result

    return read
