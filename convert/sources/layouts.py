"""How a layer's matrices lie in its tensors: one an expert or a stack of all, gate and up apart or fused.

    fused        gate_up_proj [E, 2I, H], gate's rows first; down_proj [E, H, I]
    transposed   gate_up_proj [E, H, 2I]; down_proj [E, I, H]
    interleaved  gate in the even rows, up in the odd ones: gpt-oss, told by its blocks and biases

Invariant: a Layout says where each part of a matrix [rows, columns] lies; an encoding, what its bytes mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lsg import CheckpointError
from lsg.convert.checkpoint import Tensor
from lsg.convert.sources.encoding import Part, Parts
from lsg.convert.sources.encodings import output_features
from lsg.convert.sources.names import NamedLayer

# Scales of activations, which the engine quantises in its own way, and a repetition of what other shapes say.
_UNUSED: Final = frozenset(
    {"input_scale", "input_global_scale", "activation_scale", "input_zero_point", "weight_shape"}
)


@dataclass(frozen=True)
class Stored:
    """One matrix that the checkpoint stores; `makes` are the projections that its rows become."""

    projection: str
    rows: int
    columns: int
    makes: tuple[tuple[str, slice], ...]


@dataclass(frozen=True)
class Layout:
    """The stored matrices of a layer's experts, down last."""

    stacked: bool
    transposed: bool
    hidden_size: int
    intermediate_size: int
    stored: tuple[Stored, ...]

    @property
    def gated(self) -> bool:
        """Whether the experts have a gate."""
        return any(name == "gate" for matrix in self.stored for name, _ in matrix.makes)

    def tensors(self, named: NamedLayer, expert: int, projection: str) -> Mapping[str, Tensor]:
        """By part, all that belongs to an expert's matrix."""
        return named.matrices.get((None if self.stacked else expert, projection), {})

    def part(self, tensor: Tensor) -> Part:
        """One expert's share of a tensor, oriented [rows, columns]."""
        return _part(tensor, stacked=self.stacked, transposed=self.transposed)


def used_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that make the matrix; the others belong to the expert too, but have no use here."""
    return {part: tensor for part, tensor in tensors.items() if part not in _UNUSED}


def find_layout(named: NamedLayer) -> Layout | None:
    """The layer's layout, None if it is not known. Raises CheckpointError if a projection is missing."""
    kinds = {expert is None for expert, _ in named.matrices}
    if len(kinds) > 1:
        msg = f"{named.prefix} has both stacks of all experts and tensors of single experts"
        raise CheckpointError(msg)
    stacked = kinds.pop()
    examples: dict[str, Parts] = {}
    for (_, projection), tensors in sorted(named.matrices.items(), key=lambda item: item[0][0] or 0):
        if projection not in examples:
            used = used_parts(tensors).items()
            examples[projection] = {part: _part(tensor, stacked=stacked) for part, tensor in used}
    first = ("gate_up",) if "gate_up" in examples else ("gate", "up") if "gate" in examples else ("up",)
    for projection in (*first, "down"):
        if projection not in examples:
            name = named.name(None if stacked else 0, projection, "weight")
            msg = f"{name} is missing; download the checkpoint again"
            raise CheckpointError(msg)
    hidden, intermediate = output_features(examples["down"]), output_features(examples[first[0]])
    if hidden is None or intermediate is None:
        return None
    if first != ("gate_up",):
        matrices = tuple(
            Stored(name, intermediate, hidden, ((name, slice(0, intermediate, 1)),)) for name in first
        )
        return _layout(stacked, False, hidden, intermediate, matrices)
    transposed = _is_transposed(examples)
    if transposed:
        hidden, intermediate = examples["down"]["weight"].shape[1], examples["gate_up"]["weight"].shape[1]
    rows = intermediate
    if rows % 2:
        return None
    if {"bias", "blocks"} & set(examples["gate_up"]):
        halves = slice(0, rows, 2), slice(1, rows, 2)
    else:
        halves = slice(0, rows // 2, 1), slice(rows // 2, rows, 1)
    fused = Stored("gate_up", rows, hidden, (("gate", halves[0]), ("up", halves[1])))
    return _layout(stacked, transposed, hidden, rows // 2, (fused,))


def _layout(
    stacked: bool, transposed: bool, hidden: int, intermediate: int, matrices: tuple[Stored, ...]
) -> Layout:
    down = Stored("down", hidden, intermediate, (("down", slice(0, hidden, 1)),))
    return Layout(stacked, transposed, hidden, intermediate, (*matrices, down))


def _is_transposed(examples: Mapping[str, Parts]) -> bool:
    """[H, 2I] and [I, H] instead of [2I, H] and [H, I]: no four sizes fit both, not even if H = 2I."""
    weights = [examples[name].get("weight") for name in ("gate_up", "down")]
    if any(weight is None or len(weight.shape) != 2 for weight in weights):
        return False
    (a, b), (c, d) = (weight.shape for weight in weights if weight)
    return a == d and b == 2 * c


def _part(tensor: Tensor, *, stacked: bool, transposed: bool = False) -> Part:
    shape = tensor.shape[1:] if stacked else tensor.shape
    return Part(tensor.dtype, shape[::-1] if transposed and len(shape) == 2 else shape)
