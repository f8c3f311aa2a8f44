"""The routed experts of a checkpoint, whatever their names, layout and format.

    names.py        which tensor is whose: prefixes and spellings
    layouts.py      where a matrix lies: per expert or stacked, fused, transposed, interleaved
    encodings/      what its bytes mean, one module a format
    layers.py       the three together, checked
    routed.py       reads an expert

A new format is a module in `encodings` and a line in its table. Tensor names, dtypes and shapes decide;
config.json is a hint.

Invariant: after `find_experts`, every tensor of the checkpoint is either an expert's, claimed by the source,
or certainly not an expert's; so the resident files never hold a routed expert, except those of draft modules.
"""

import re
from typing import Final

from lsg import CheckpointError
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources.base import Expert, ExpertLayer, Source
from lsg.convert.sources.encodings import KNOWN
from lsg.convert.sources.names import is_draft, is_routed
from lsg.convert.sources.routed import RoutedExperts

__all__ = ["Expert", "ExpertLayer", "Source", "find_experts"]

_ROUTER: Final = re.compile(
    r"(?P<module>.+\.(?:mlp|ffn|block_sparse_moe|mixer|moe))\.(?:gate|router)\.weight"
)


def find_experts(checkpoint: Checkpoint, geometry: MoeGeometry) -> Source:
    """The checkpoint's routed experts. Raises CheckpointError."""
    experts = [tensor for tensor in checkpoint.tensors.values() if is_routed(tensor.name)]
    if not experts:
        msg = f"{checkpoint.directory}: config.json describes routed experts, but no tensor belongs to one"
        raise CheckpointError(msg)
    source = RoutedExperts(checkpoint, geometry)
    stranger = next((tensor for tensor in experts if tensor.name not in source.tensor_names), None)
    if stranger is not None:
        msg = (
            f"{checkpoint.directory / stranger.shard}: {stranger.name} ({stranger.dtype} "
            f"{list(stranger.shape)}) is an expert of a kind that this lsg-convert does not read; "
            f"it reads {KNOWN}"
        )
        raise CheckpointError(msg)
    prefixes = {layer.prefix for layer in source.layers}
    for name in checkpoint.tensors:
        router = _ROUTER.fullmatch(name)
        if router and not is_draft(name) and not prefixes & _homes(router["module"]):
            msg = (
                f"{checkpoint.directory}: {name} is a router, but the layer has no experts; download it again"
            )
            raise CheckpointError(msg)
    return source


def _homes(module: str) -> set[str]:
    """Where the experts of a router's module may be."""
    return {module, f"{module}.experts"}
