"""Which source format becomes which target, and how: the one table.

Invariant: numbers of 4 bits are never quantised again, and nothing is made larger but to 16 bits.
"""

import enum
from typing import Final

from lsg import CheckpointError
from lsg._core import Dtype, PanelFormat, ScaleDtype


class Way(enum.Enum):
    """What happens to the numbers."""

    KEPT = "the source's own codes and scales"
    ROUNDED = "the nearest 16-bit number"
    QUANTISED = "fewer bits"
    REFUSED = "nothing: the command fails before it writes"


NAMES: Final = ("int4", "int8", "fp8", "bf16", "fp16", "mxfp4", "nvfp4", "keep")

_K, _R, _Q, _X = Way.KEPT, Way.ROUNDED, Way.QUANTISED, Way.REFUSED
# In the order of NAMES. int8 to fp8 is refused because it costs accuracy and saves nothing; fp8 to int8 costs
# little and is faster where the processor multiplies integers.
WAYS: Final[dict[str, tuple[Way, ...]]] = {
    # to:    int4 int8 fp8 bf16 fp16 mxfp4 nvfp4 keep
    "bf16": (_Q, _Q, _Q, _K, _R, _Q, _Q, _K),
    "fp16": (_Q, _Q, _Q, _R, _K, _Q, _Q, _K),
    "fp8": (_Q, _Q, _K, _R, _R, _Q, _Q, _K),
    "int8": (_Q, _K, _X, _R, _R, _Q, _Q, _K),
    "int4": (_K, _X, _X, _R, _R, _X, _X, _K),
    "mxfp4": (_X, _X, _X, _R, _R, _K, _X, _K),
    "nvfp4": (_X, _X, _X, _R, _R, _X, _K, _K),
}
_FAMILIES: Final = {
    Dtype.INT4: "int4",
    Dtype.INT8: "int8",
    Dtype.FP8_E4M3: "fp8",
    Dtype.FP8_E5M2: "fp8",
    Dtype.BF16: "bf16",
    Dtype.F16: "fp16",
}


def family(source: PanelFormat) -> str:
    """The source format's row of the table."""
    if source.dtype == Dtype.FP4_E2M1:
        return "mxfp4" if source.scale_dtype == ScaleDtype.E8M0 else "nvfp4"
    return _FAMILIES[source.dtype]


def way(source: PanelFormat, name: str) -> Way:
    """How numbers of the source format become the target; REFUSED raises CheckpointError."""
    found = family(source)
    decided = WAYS[found][NAMES.index(name)]
    if decided == Way.REFUSED:
        why = (
            "which would cost accuracy and save nothing"
            if found == "int8"
            else "as 4-bit numbers are not quantised again"
        )
        msg = (
            f"experts stored as {found} are not converted to {name}, {why}; "
            "convert with --experts keep (the same numbers) or --experts bf16"
        )
        raise CheckpointError(msg)
    return decided
