"""Brings layers into an engine: chooses the mode, finds room, shows how far it is, says what came of it.

Invariant: a load that cannot fit is refused before a byte is read.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lsg._core import Activation, Engine, LayerFile
from lsg.manifest import ActivationSpec
from lsg.runtime import load_plan
from lsg.runtime.load_plan import Choice, NodeFound, Range, Room

ACTIVATIONS: Final = {
    "silu": Activation.SILU,
    "swiglu_clamped": Activation.SWIGLU_CLAMPED,
    "silu_clamped": Activation.SILU_CLAMPED,
    "swigluoai": Activation.SWIGLUOAI,
    "gelu_tanh": Activation.GELU_TANH,
    "relu2": Activation.RELU2,
    "situ": Activation.SITU,
}
# (node, bytes done, bytes in all) of each node, several times a second.
Progress = Callable[[list[tuple[int, int, int]]], None]


@dataclass(frozen=True)
class Layer:
    """A layer file, what to compute with it and which units should lie on which node.

    node_units: how many units each of the engine's nodes computes.
    """

    path: Path
    activation: ActivationSpec
    ranges: Sequence[Range]
    node_units: Sequence[int] = ()


@dataclass(frozen=True)
class Loaded:
    """What came of a load. handles: of the layers, in order."""

    handles: list[int]
    choice: Choice
    seconds: float
    bytes: int
    locked_bytes: int
    nodes: list[NodeFound]

    def facts(self) -> dict[str, object]:
        """For programs."""
        return {
            "mode": self.choice.mode,
            "reason": self.choice.reason,
            "layers": len(self.handles),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "locked_bytes": self.locked_bytes,
            "nodes": [dataclasses.asdict(node) for node in self.nodes],
        }

    def lines(self) -> list[str]:
        """In words: the speed and what is locked, then one line for each node."""
        gb = self.bytes / 1e9
        locked = "locked" if self.locked_bytes >= self.bytes else "not locked (see ulimit -l)"
        return [
            f"{len(self.handles)} expert layers, {gb:.2f} GB in {self.seconds:.1f} s "
            f"({gb / max(self.seconds, 1e-9):.1f} GB/s), {locked}",
            *map(load_plan.describe, self.nodes),
        ]


def load_layers(
    engine: Engine,
    layers: Sequence[Layer],
    *,
    mode: str,
    spill: bool,
    rooms: Mapping[int, Room],
    left_bytes: int | None,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> Loaded:
    """Load `layers` into the engine; `rooms`, `left_bytes` and `spill` as in load_plan.fit.

    Raises CapacityError when memory is short, FormatError for a damaged file.
    """
    choice = load_plan.choose(mode, load_plan.look_at([layer.path for layer in layers]))
    say(f"load {choice.mode}: {choice.reason}")
    unit_bytes = [LayerFile(str(layer.path)).spec.unit_bytes for layer in layers]
    placed = load_plan.fit(
        [layer.ranges for layer in layers], unit_bytes, rooms, spill=spill, left_bytes=left_bytes
    )
    loaded_before, locked_before = engine.loaded_bytes, engine.locked_bytes
    handles = [
        engine.add_layer(
            str(layer.path),
            activation=ACTIVATIONS[layer.activation.kind],
            alpha=layer.activation.alpha,
            limit=layer.activation.limit,
            load=choice.mode,
            nodes=ranges,
            node_units=layer.node_units,
            defer=True,
        )
        for layer, ranges in zip(layers, placed, strict=True)
    ]
    began = time.monotonic()
    engine.load(progress, lock=True)
    seconds = time.monotonic() - began
    mine = set(handles)
    loaded = Loaded(
        handles,
        choice,
        seconds,
        engine.loaded_bytes - loaded_before,
        engine.locked_bytes - locked_before,
        load_plan.found([part for part in engine.residency() if part.layer in mine]),
    )
    for line in loaded.lines():
        say(line)
    return loaded
