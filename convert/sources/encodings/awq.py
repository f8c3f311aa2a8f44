"""AutoAWQ's GEMM layout: int4, inputs first, packed along OUTPUTS in an order of its own.

    qweight    I32 [columns, rows / 8]
    qzeros     I32 [groups, rows / 8]
    scales     F16 (or BF16, F32) [groups, rows]

Value: (u - z) · scale. Invariant: a word's nibbles, lowest first, are its outputs 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsg._core import Dtype
from lsg.convert.sources.encoding import (
    SCALE_DTYPES,
    Arrays,
    Decoded,
    Encoding,
    Parts,
    block_of,
    require_shape,
)
from lsg.convert.sources.encodings.packing import unpack_rows

_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_DTYPES: Final = {"qweight": ("I32",), "qzeros": ("I32",), "scales": ("F32", "F16", "BF16")}


def recognise(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """AWQ's three tensors, told from GPTQ's by the packed axis. Raises CheckpointError for other shapes."""
    if set(parts) != set(_DTYPES) or any(parts[name].dtype not in _DTYPES[name] for name in parts):
        return None
    if parts["qweight"].shape[-1:] != (rows // 8,):
        return None
    groups = parts["scales"].shape[0]
    require_shape("qweight", parts["qweight"], (columns, rows // 8))
    require_shape("qzeros", parts["qzeros"], (groups, rows // 8))
    require_shape("scales", parts["scales"], (groups, 8 * (rows // 8)))

    def decode(arrays: Arrays) -> Decoded:
        return Decoded(
            unpack_rows(arrays["qweight"].T, 4, rows, _ORDER),
            np.ascontiguousarray(arrays["scales"].T),
            unpack_rows(arrays["qzeros"].T, 4, rows, _ORDER),
        )

    return Encoding(
        "awq_int4",
        {name: part.dtype for name, part in parts.items()},
        decode,
        Dtype.INT4,
        SCALE_DTYPES[parts["scales"].dtype],
        block_columns=block_of("scales", "columns", columns, groups),
        zero_point=True,
    )
