"""Where the matrices of a layer's experts lie: a tensor for each, or all experts of a layer in one.

Invariant: a layout permutes, stacks and names; it changes no value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from checkpoints.families.matrices import Tensors

PROJECTIONS: Final = ("gate", "up", "down")
# Tensors of one expert: projection, then suffix.
ExpertTensors = Mapping[str, Tensors]
# What a fused parameter's suffix is called: it is the parameter itself, not a module with a `.weight`.
_FUSED_SUFFIX: Final = {
    "weight": "",
    "weight_scale_inv": "_scale_inv",
    "activation_scale": "_activation_scale",
    "blocks": "_blocks",
    "scales": "_scales",
    "bias": "_bias",
}


@dataclass(frozen=True)
class Layout:
    """`kind`: a module per expert, a tensor per projection, or gate and up in one."""

    kind: Literal["per-expert", "per-projection", "fused"] = "per-expert"
    # Fused: [E, in, out] instead of [E, out, in]; even rows gate, odd rows up instead of all gates first.
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False

    def place(self, prefix: str, modules: Mapping[str, str], experts: Sequence[ExpertTensors]) -> Tensors:
        """The layer's tensors; `modules` names each projection's module."""
        if self.kind == "per-expert":
            return {
                f"{prefix}.{number}.{modules[projection]}.{suffix}": tensor
                for number, expert in enumerate(experts)
                for projection, tensors in expert.items()
                for suffix, tensor in tensors.items()
            }
        if self.kind == "per-projection":
            return {
                f"{prefix}.{modules[projection]}.{suffix}": _stack([e[projection][suffix] for e in experts])
                for projection, tensors in experts[0].items()
                for suffix in tensors
            }
        placed = {}
        for suffix in experts[0]["down"]:
            gate_up = _stack([self._join(e["gate"][suffix], e["up"][suffix]) for e in experts])
            down = _stack([e["down"][suffix] for e in experts])
            for name, tensor in (("gate_up_proj", gate_up), ("down_proj", down)):
                placed[f"{prefix}.{name}{_FUSED_SUFFIX[suffix]}"] = self._turn(suffix, tensor)
        return placed

    def _join(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if gate.shape == (1, 1):
            # One number for the fused matrix, which both drew alike.
            return gate
        if self.interleaved:
            return _bytes(gate, up, lambda g, u: torch.stack((g, u), 1).flatten(0, 1))
        return _bytes(gate, up, lambda g, u: torch.cat((g, u)))

    def _turn(self, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
        if suffix == "blocks":
            # 16 bytes hold the 32 codes that share a scale.
            return tensor.unflatten(2, (-1, 16))
        return tensor.transpose(1, 2).contiguous() if self.transposed and tensor.ndim == 3 else tensor


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    # Not every operation knows the 8-bit types.
    if tensors[0].element_size() == 1:
        return torch.stack([tensor.view(torch.uint8) for tensor in tensors]).view(tensors[0].dtype)
    return torch.stack(list(tensors))


def _bytes(gate: torch.Tensor, up: torch.Tensor, join) -> torch.Tensor:
    if gate.element_size() == 1:
        return join(gate.view(torch.uint8), up.view(torch.uint8)).view(gate.dtype)
    return join(gate, up)


PER_EXPERT: Final = Layout()
PER_PROJECTION: Final = Layout("per-projection")
FUSED: Final = Layout("fused")
TRANSPOSED: Final = Layout("fused", transposed=True)
GPT_OSS: Final = Layout("fused", interleaved=True, bias=True)
GPT_OSS_BF16: Final = Layout("fused", interleaved=True, transposed=True, bias=True)
