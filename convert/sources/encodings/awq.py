"""AutoAWQ's GEMM layout: int4, inputs first, packed along OUTPUTS in an order of its own.

    qweight    I32 [columns, rows / 8]
    qzeros     I32 [groups, rows / 8]
    scales     F16 (or BF16, F32) [groups, rows]

Value: (u - z) · scale. Invariant: a word's nibbles, lowest first, are its outputs 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsg.convert.sources.encoding import Arrays, Decoded, Encoding, Parts, block_of
from lsg.convert.sources.encodings.packing import SCALES, has_parts, integers, require_shapes, unpack_rows

_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_DTYPES: Final = {"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALES}


def recognise(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """AWQ's three tensors, told from GPTQ's by the packed axis. Raises CheckpointError for other shapes."""
    if not has_parts(parts, _DTYPES) or parts["qweight"].shape[-1:] != (rows // 8,):
        return None
    groups = parts["scales"].shape[0]
    require_shapes(
        parts,
        {
            "qweight": (columns, rows // 8),
            "qzeros": (groups, rows // 8),
            "scales": (groups, 8 * (rows // 8)),
        },
    )
    group = block_of("scales", "columns", columns, groups)

    def decode(arrays: Arrays) -> Decoded:
        return Decoded(
            unpack_rows(arrays["qweight"].T, 4, rows, _ORDER),
            np.ascontiguousarray(arrays["scales"].T),
            unpack_rows(arrays["qzeros"].T, 4, rows, _ORDER),
        )

    return integers("awq", 4, parts, decode, scale="scales", group=group, zero_point=True)
