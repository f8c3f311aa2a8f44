"""GPTQ, int4 or int8: inputs first, packed along INPUTS.

    qweight    I32 [words, rows]
    qzeros     I32 [groups, words]    packed along rows; version 1 stores z - 1, version 2 (gptq_v2) stores z
    scales     F16 (or BF16, F32) [groups, rows]
    g_idx      I32 [columns]          the group of each input; may be absent

Value: (u - z) · scale.

Invariant: the version is quantization_config's `checkpoint_format`; a zero point that version 1 stores as 15
is 16. Where the configuration promises symmetry or groups in order (`desc_act` false), every zero point and
every index is checked, not believed.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsg import CheckpointError
from lsg.convert.sources.encoding import Arrays, Decoded, Encoding, Parts, block_of
from lsg.convert.sources.encodings.packing import (
    SCALES,
    Bytes,
    has_parts,
    integers,
    order_of,
    require_shapes,
    unpack_columns,
    unpack_rows,
    words_for,
)

_REQUIRED: Final = {"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALES}
_OPTIONAL: Final = {"g_idx": ("I32",)}


def recognise(parts: Parts, rows: int, columns: int, hints: Mapping[str, Any]) -> Encoding | None:
    """GPTQ's three or four tensors. Raises CheckpointError for shapes that do not fit."""
    if not has_parts(parts, _REQUIRED, _OPTIONAL) or parts["qweight"].shape[-1:] != (rows,):
        return None
    bits = 4 if parts["qweight"].shape[0] == words_for(columns, 4) else 8
    groups = parts["scales"].shape[0]
    require_shapes(
        parts,
        {
            "qweight": (words_for(columns, bits), rows),
            "qzeros": (groups, words_for(rows, bits)),
            "scales": (groups, rows),
            "g_idx": (columns,),
        },
    )
    group = block_of("scales", "columns", columns, groups)
    # The other formats of this field (marlin, …) have other tensors.
    less = 0 if hints.get("checkpoint_format") == "gptq_v2" else 1
    symmetric = hints.get("sym") is True
    # Every GPTQ checkpoint has an index; an order in the blob costs time, so the promise of none is taken up.
    ordered = "g_idx" in parts and hints.get("desc_act") is not False
    middle = 1 << (bits - 1)

    def decode(arrays: Arrays) -> Decoded:
        order = order_of(arrays["g_idx"], group) if "g_idx" in arrays else None
        if order is not None and not ordered:
            msg = (
                "g_idx gives the inputs an order, but config.json says that they have none; correct "
                "`desc_act` in its quantization_config"
            )
            raise CheckpointError(msg)
        codes = unpack_columns(arrays["qweight"].T, bits, columns)
        if order is not None:
            codes = codes.take(order, axis=1)
        scales = np.ascontiguousarray(arrays["scales"].T)
        zeros = _zeros(unpack_rows(arrays["qzeros"].T, bits, rows), less)
        if not symmetric:
            return Decoded(codes, scales, zeros, order=order)
        if (zeros != middle).any():
            odd = int(zeros[zeros != middle][0])
            msg = (
                f"a zero point is {odd}, but config.json says that the weights are symmetric "
                f"({middle}); correct `sym` or `checkpoint_format` in its quantization_config"
            )
            raise CheckpointError(msg)
        return Decoded(codes if bits == 4 else codes ^ middle, scales, order=order)

    return integers(
        "gptq", bits, parts, decode, scale="scales", group=group, zero_point=not symmetric, ordered=ordered
    )


def _zeros(stored: Bytes, less: int) -> Bytes:
    if less and (stored == 0xFF).any():
        msg = "a zero point is 256, which a byte cannot hold"
        raise CheckpointError(msg)
    return stored + np.uint8(less)
