"""The MoE layers that are measured: shapes of published models, in the formats that the converter writes.

Invariant: a layer has its model's experts, or as many as MAX_LAYER_BYTES hold; the result says how many.
"""

from dataclasses import dataclass
from typing import Final

from lsg._core import Dtype, LayerSpec, PanelFormat, ScaleDtype

# Two layers of the largest must fit beside everything else on a machine with 16 GB.
MAX_LAYER_BYTES: Final = 2_500_000_000


@dataclass(frozen=True)
class Shape:
    """A model's MoE layer."""

    model: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int


SHAPES: Final = {
    "A": Shape("Qwen3-30B-A3B", 2048, 768, 128, 8),
    "B": Shape("Qwen3-Next-80B-A3B", 2048, 512, 512, 10),
    "C": Shape("GLM-4.7", 5120, 1536, 160, 8),
    "D": Shape("Kimi-K2.5", 7168, 2048, 384, 8),
}

FORMATS: Final = {
    "int4": PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32),
    "int8": PanelFormat(Dtype.INT8, ScaleDtype.BF16, scale_k=32),
    "fp8": PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, scale_rows=32, scale_k=128),
    "bf16": PanelFormat(Dtype.BF16),
    "mxfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.E8M0, scale_k=32),
    "nvfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True),
}

BATCHES: Final = (1, 2, 4, 16, 64, 512, 2048, 4096)


def layer_spec(shape: Shape, format: str, num_experts: int | None = None) -> LayerSpec:
    """The shape's layer in a format of FORMATS; None: all its experts, as far as MAX_LAYER_BYTES goes."""

    def of(experts: int) -> LayerSpec:
        return LayerSpec(
            layer_index=0,
            num_experts=experts,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            gated=True,
            gate_up=FORMATS[format],
            down=FORMATS[format],
        )

    return of(num_experts or min(shape.num_experts, MAX_LAYER_BYTES // expert_bytes(of(1))))


def expert_bytes(spec: LayerSpec) -> int:
    """What the engine reads of one expert."""
    return spec.num_units * spec.record_bytes
