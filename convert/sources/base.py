"""What every source format offers: the routed experts of a checkpoint, one expert at a time.

Invariant: a source changes no value. It hands over the codes and scales that the checkpoint holds, in the
format it declares; turning them into another format is a target's work (`lsg.convert.targets`).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lsg._core import Matrix, PanelFormat
from lsg.manifest import ActivationSpec


class Expert(NamedTuple):
    """One expert's projections; gate is None in models whose experts have none."""

    gate: Matrix | None
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer as the checkpoint has them; gate, up are [I, H], down is [H, I].

    codes_as_stored: the shards hold all codes as the core wants them, so they may stay there (`Source.read`).
    """

    index: int
    prefix: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    gated: bool
    activation: ActivationSpec
    gate_up: PanelFormat
    down: PanelFormat
    expert_bytes: int
    codes_as_stored: bool


class Source(Protocol):
    """A checkpoint whose routed experts have been found, complete and of the expected shapes."""

    @property
    def format(self) -> str:
        """Name for the manifest."""

    @property
    def layers(self) -> tuple[ExpertLayer, ...]:
        """By rising index."""

    @property
    def tensor_names(self) -> frozenset[str]:
        """Every tensor that belongs to a routed expert; all others stay resident."""

    def read(self, layer: ExpertLayer, expert: int, *, in_file: bool = False) -> Expert:
        """Read one expert; safe to call from several threads. Raises CheckpointError.

        Its numbers are as they are in the checkpoint, even where they are none. in_file: it is for
        `_core.convert_expert` alone, and where codes are as stored, they stay in the file.
        """

    def check(self, layer: ExpertLayer, expert: int) -> None:
        """Raise CheckpointError, naming the tensor, if a number of the expert is a NaN or infinite."""
