"""Which tensors belong to which routed expert: the spellings of checkpoints, nothing of what is in them.

    model.layers.3.mlp.experts.7.gate_proj.weight                  an expert's own matrix (also w1, w3, w2)
    model.layers.3.mlp.experts.gate_up_proj_blocks                 a stack: the first axis counts the experts
    model.layers.3.moe.up_proj.weight                              a stack, as Step writes it

Invariant: shared experts and the experts of draft modules (`mtp.…`) are never collected: they stay resident.
A draft layer that is numbered among the others (`model.layers.{num_hidden_layers}`) is a layer like them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from lsg import CheckpointError
from lsg.convert.checkpoint import Tensor

_LAYER: Final = r"(?P<prefix>(?:\w+\.)*?layers\.(?P<layer>\d+)\."
_SINGLE: Final = re.compile(
    _LAYER + r"(?:\w+\.)*?experts)\.(?P<expert>\d+)\.(?P<name>(?:gate|up|down)_proj|w[123])\.(?P<part>\w+)"
)
_STACKED: Final = re.compile(
    _LAYER + r"(?:\w+\.)*?experts)\.(?P<name>(?:gate_up|gate|up|down)_proj)(?P<part>[._]\w+|)"
)
_STACKED_MOE: Final = re.compile(_LAYER + r"moe)\.(?P<name>(?:gate|up|down)_proj)\.(?P<part>\w+)")
_PROJECTIONS: Final = {
    "gate_up_proj": "gate_up",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_DRAFT: Final = re.compile(r"(?:.+\.)?mtp\.")
_EXPERT: Final = re.compile(r".+\.experts\.(?!e_score_correction_bias)")
# A stack's tensor is often named like the module itself, its scales after that.
_STACKED_PARTS: Final = {"": "weight", "scale": "weight_scale", "scale_inv": "weight_scale_inv"}

Parts = dict[str, Tensor]


@dataclass
class NamedLayer:
    """The tensors of one layer's experts, by expert (None: a stack of all), projection and part."""

    index: int
    prefix: str
    matrices: dict[tuple[int | None, str], Parts] = field(default_factory=dict)
    spelling: dict[str, str] = field(default_factory=dict)

    def name(self, expert: int | None, projection: str, part: str) -> str:
        """What the checkpoint would call a tensor of this layer."""
        path = self.prefix if expert is None else f"{self.prefix}.{expert}"
        default = next(name for name, known in _PROJECTIONS.items() if known == projection)
        return f"{path}.{self.spelling.get(projection, default)}.{part}"


def collect(tensors: Iterable[Tensor]) -> list[NamedLayer]:
    """The layers that have routed experts, by rising index. Raises CheckpointError if two claim one index."""
    layers: dict[int, NamedLayer] = {}
    for tensor in tensors:
        match = _SINGLE.fullmatch(tensor.name) or _STACKED.fullmatch(tensor.name)
        match = match or _STACKED_MOE.fullmatch(tensor.name)
        if match is None or is_draft(tensor.name):
            continue
        layer = layers.setdefault(int(match["layer"]), NamedLayer(int(match["layer"]), match["prefix"]))
        if layer.prefix != match["prefix"]:
            msg = (
                f"{tensor.shard}: {layer.prefix} and {match['prefix']} are both the experts of layer "
                f"{layer.index}; only models with one set of experts per layer are supported"
            )
            raise CheckpointError(msg)
        projection = _PROJECTIONS[match["name"]]
        if layer.spelling.setdefault(projection, match["name"]) != match["name"]:
            # Two spellings of one matrix: unclaimed, so it is reported as a tensor that is not understood.
            continue
        expert = match.groupdict().get("expert")
        part = match["part"].lstrip("._")
        if expert is None:
            part = _STACKED_PARTS.get(part, part)
        layer.matrices.setdefault((None if expert is None else int(expert), projection), {})[part] = tensor
    return [layers[index] for index in sorted(layers)]


def is_draft(name: str) -> bool:
    """Whether a tensor belongs to a draft module, which stays resident as a whole."""
    return _DRAFT.match(name) is not None


def is_routed(name: str) -> bool:
    """Whether a tensor's name says that it belongs to a routed expert of the model proper."""
    return not is_draft(name) and any(pattern.match(name) for pattern in (_EXPERT, _STACKED, _STACKED_MOE))
