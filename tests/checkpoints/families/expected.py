"""What a converted family checkpoint must be.

Invariant: everything here was known before a file was written; nothing is read back from the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from checkpoints.families.family import Activation
from checkpoints.families.matrices import F64

# (module path of the layer's experts, expert, "gate" | "up" | "down")
ExpertKey = tuple[str, int, str]


@dataclass(frozen=True)
class Expected:
    """gate, up are [I, H], down is [H, I] for every expert; not one routed-expert tensor is in `resident`."""

    weights: Mapping[ExpertKey, F64]
    biases: Mapping[ExpertKey, F64]
    # How far readers of the format may differ, relative to each weight.
    rtol: float
    resident: frozenset[str]
    routed: frozenset[str]
    num_experts: int
    hidden: int
    intermediate: int
    top_k: int
    gated: bool
    # Module path of a layer's experts -> what they compute, and the layer's index.
    activations: Mapping[str, Activation]
    indices: Mapping[str, int]
    # Inputs have groups that are not runs: a blob may hold an expert's inputs and neurons in another order.
    reorders: bool
