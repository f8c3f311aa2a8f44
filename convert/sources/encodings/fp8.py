"""FP8 with multiplying scales: blocks of any power of two, per channel, or one for the whole matrix.

    weight              F8_E4M3 or F8_E5M2 [rows, columns]; U8 in some repositories, then E4M3
    weight_scale_inv    [row blocks, column blocks]: DeepSeek's and Qwen's name; also `weight_scale`, `scale`.
                        [rows, 1] or [rows]: per channel. [], [1], [1, 1]: one scale.
                        F32, BF16, F16, or E8M0 (also written as U8)

Invariant: in spite of its name weight_scale_inv multiplies, as the other two do.
"""

from collections.abc import Mapping
from typing import Any, Final

from lsg._core import Dtype
from lsg.convert.sources.encoding import (
    SCALE_DTYPES,
    Arrays,
    Decoded,
    Encoding,
    Part,
    Parts,
    block_of,
    require_shape,
)

_DTYPES: Final = {"F8_E4M3": Dtype.FP8_E4M3, "F8_E5M2": Dtype.FP8_E5M2, "U8": Dtype.FP8_E4M3}
_SCALES: Final = ("weight_scale_inv", "weight_scale", "scale")
_NAMES: Final = {Dtype.FP8_E4M3: "fp8_e4m3", Dtype.FP8_E5M2: "fp8_e5m2"}


def recognise(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """An 8-bit float weight with one scale tensor. Raises CheckpointError for shapes that do not fit."""
    scale = next((name for name in _SCALES if name in parts), "")
    if set(parts) != {"weight", scale} or parts["weight"].dtype not in _DTYPES:
        return None
    if parts["weight"].dtype == "U8" and parts["weight"].shape != (rows, columns):
        return None  # two 4-bit codes a byte
    scale_numbers = "F8_E8M0" if parts[scale].dtype == "U8" else parts[scale].dtype
    if scale_numbers not in SCALE_DTYPES:
        return None
    require_shape("weight", parts["weight"], (rows, columns))
    row_blocks, column_blocks = _grid(scale, parts[scale], rows)

    def decode(arrays: Arrays) -> Decoded:
        return Decoded(arrays["weight"], arrays[scale].reshape(row_blocks, column_blocks))

    dtype = _DTYPES[parts["weight"].dtype]
    numbers = "F8_E5M2" if dtype == Dtype.FP8_E5M2 else "F8_E4M3"
    return Encoding(
        _NAMES[dtype],
        {"weight": numbers, scale: scale_numbers},
        decode,
        dtype,
        SCALE_DTYPES[scale_numbers],
        block_rows=block_of(scale, "rows", rows, row_blocks),
        block_columns=block_of(scale, "columns", columns, column_blocks),
        as_stored="weight",
    )


def _grid(name: str, scale: Part, rows: int) -> tuple[int, int]:
    if len(scale.shape) == 2:
        return scale.shape[0], scale.shape[1]
    if scale.shape in ((), (1,)):
        return 1, 1
    require_shape(name, scale, (rows,))
    return rows, 1
