"""Formats that routed experts have in checkpoints, one module each.

A new format is a module with a class that fulfils `Source` and a line in `_SOURCES`. Tensor names, dtypes and
shapes decide which one it is; config.json is a hint.

Invariant: after `find_experts`, every tensor of the checkpoint is either an expert's, claimed by the source,
or certainly not an expert's; so the resident files never hold a routed expert.
"""

import re
from collections.abc import Callable
from typing import Final

from lsg import CheckpointError
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources.base import Expert, ExpertLayer, Source
from lsg.convert.sources.half import HalfSource

__all__ = ["Expert", "ExpertLayer", "Source", "find_experts"]

_SOURCES: Final[tuple[Callable[[Checkpoint, MoeGeometry], Source | None], ...]] = (HalfSource.recognise,)
_ROUTER: Final = re.compile(r"(?P<mlp>.+\.mlp)\.gate\.weight")


def find_experts(checkpoint: Checkpoint, geometry: MoeGeometry) -> Source:
    """The one source that knows this checkpoint. Raises CheckpointError."""
    experts = [tensor for tensor in checkpoint.tensors.values() if ".experts." in tensor.name]
    if not experts:
        msg = f"{checkpoint.directory}: config.json describes routed experts, but no tensor belongs to one"
        raise CheckpointError(msg)
    source = next((s for recognise in _SOURCES if (s := recognise(checkpoint, geometry))), None)
    claimed = source.tensor_names if source else frozenset()
    stranger = next((tensor for tensor in experts if tensor.name not in claimed), None)
    if source is None or stranger is not None:
        found = stranger or experts[0]
        msg = (
            f"{checkpoint.directory / found.shard}: {found.name} ({found.dtype} {list(found.shape)}) is an "
            "expert of a kind that this lsg-convert does not read; it reads one BF16 or F16 matrix per "
            "expert and projection"
        )
        raise CheckpointError(msg)
    prefixes = {layer.prefix for layer in source.layers}
    for name in checkpoint.tensors:
        router = _ROUTER.fullmatch(name)
        if router and f"{router['mlp']}.experts" not in prefixes:
            msg = (
                f"{checkpoint.directory}: {name} is a router, but the layer has no experts; download it again"
            )
            raise CheckpointError(msg)
    return source
