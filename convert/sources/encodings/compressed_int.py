"""compressed-tensors' integers: pack-quantized and int-quantized.

    weight_packed        I32 [rows, words]     q + 2^(bits-1), along columns
    weight               I8 [rows, columns]    q (int-quantized)
    weight_scale         [rows, groups], F32, F16 or BF16
    weight_zero_point    I32 [words, groups]   packed along ROWS, with the same offset; or I8 [rows, groups];
                         absent when symmetric
    weight_g_idx         I32 [columns]         the group of each input; -1: in order

Value: (q - zero_point) · scale.

Invariant: where a square zero point would fit along both axes, rows are meant.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsg.convert.sources.encoding import Arrays, Decoded, Encoding, Parts, block_of
from lsg.convert.sources.encodings.packing import (
    SCALES,
    has_parts,
    integers,
    order_of,
    require_shapes,
    unpack_columns,
    unpack_rows,
    words_for,
)

_OPTIONAL: Final = {"weight_zero_point": ("I32", "I8"), "weight_g_idx": ("I32",)}


def recognise(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """Packed int4 or int8, or plain int8. Raises CheckpointError for shapes that do not fit."""
    packed = "weight_packed" in parts
    weight = "weight_packed" if packed else "weight"
    required = {weight: ("I32",) if packed else ("I8",), "weight_scale": SCALES}
    if not has_parts(parts, required, _OPTIONAL) or len(parts["weight_scale"].shape) != 2:
        return None
    bits = 4 if packed and parts[weight].shape == (rows, words_for(columns, 4)) else 8
    groups = parts["weight_scale"].shape[1]
    zero_point = parts.get("weight_zero_point")
    packed_zeros = zero_point is not None and zero_point.dtype == "I32"
    require_shapes(
        parts,
        {
            weight: (rows, words_for(columns, bits) if packed else columns),
            "weight_scale": (rows, groups),
            "weight_zero_point": (words_for(rows, bits) if packed_zeros else rows, groups),
            "weight_g_idx": (columns,),
        },
    )
    group = block_of("weight_scale", "columns", columns, groups)
    offset = 1 << (bits - 1)

    def decode(arrays: Arrays) -> Decoded:
        index = arrays.get("weight_g_idx")
        order = None if index is None or (index == 0xFFFFFFFF).all() else order_of(index, group)
        codes = unpack_columns(arrays[weight], bits, columns) if packed else arrays[weight] ^ offset
        if order is not None:
            codes = codes.take(order, axis=1)
        if zero_point is None:
            # int8 without zero points is two's complement, int4 keeps its offset.
            return Decoded(codes if bits == 4 else codes ^ offset, arrays["weight_scale"], order=order)
        stored = arrays["weight_zero_point"]
        zeros = unpack_rows(stored, bits, rows) if packed_zeros else stored + np.uint8(offset)
        return Decoded(codes, arrays["weight_scale"], zeros, order=order)

    return integers(
        "compressed_tensors",
        bits,
        parts,
        decode,
        scale="weight_scale",
        group=group,
        zero_point=zero_point is not None,
        ordered="weight_g_idx" in parts,
    )
