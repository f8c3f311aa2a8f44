"""FP4 (E2M1) codes, two a byte, the even input in the low half: MXFP4 and NVFP4.

MXFP4, groups of 32 with a power of two each (E8M0, also written as U8), in three spellings:

    blocks U8 [rows, columns / 32, 16], scales [rows, groups]           gpt-oss
    weight_packed U8 [rows, columns / 2], weight_scale                  compressed-tensors
    weight I8 or U8 [rows, columns / 2], scale or weight_scale          DeepSeek, ModelOpt

NVFP4, groups of 16 with an E4M3 scale each and a global scale, in two dialects:

    weight U8, weight_scale, weight_scale_2                ModelOpt: code · scale · weight_scale_2
    weight_packed U8, weight_scale, weight_global_scale    compressed-tensors: code · scale / global

Invariant: names tell the dialects apart and are never mixed. A blob multiplies, so the second dialect's
global scale becomes the float32 nearest to its reciprocal, as in the programs that serve it: exact for powers
of two.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsg import CheckpointError
from lsg._core import Dtype, ScaleDtype
from lsg.convert.sources.encoding import Arrays, Decoded, Encoding, Parts, require_shape
from lsg.convert.sources.encodings.packing import unpack_nibbles

_MXFP4: Final = (
    ("blocks", "scales"),
    ("weight_packed", "weight_scale"),
    ("weight", "scale"),
    ("weight", "weight_scale"),
)
_NVFP4: Final = (("weight", "weight_scale_2"), ("weight_packed", "weight_global_scale"))
_MX_GROUP: Final = 32
_NV_GROUP: Final = 16


def recognise_mxfp4(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """One of the three spellings. Raises CheckpointError for shapes that do not fit."""
    weight, scale = next((pair for pair in _MXFP4 if set(pair) == set(parts)), ("", ""))
    if not weight or parts[weight].dtype not in ("U8", "I8") or parts[scale].dtype not in ("U8", "F8_E8M0"):
        return None
    if parts[weight].shape == (rows, columns):
        return None  # a byte per weight: FP8, or no known format
    groups = -(-columns // _MX_GROUP)
    packed = (rows, groups, _MX_GROUP // 2) if weight == "blocks" else (rows, columns // 2)
    require_shape(weight, parts[weight], packed)
    require_shape(scale, parts[scale], (rows, groups))

    def decode(arrays: Arrays) -> Decoded:
        return Decoded(unpack_nibbles(arrays[weight].reshape(rows, -1))[:, :columns], arrays[scale])

    numbers = {weight: "U8", scale: "F8_E8M0"}
    return Encoding("mxfp4", numbers, decode, Dtype.FP4_E2M1, ScaleDtype.E8M0, block_columns=_MX_GROUP)


def recognise_nvfp4(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """One of the two dialects. Raises CheckpointError for shapes that do not fit."""
    dialects = (pair for pair in _NVFP4 if set(parts) == {*pair, "weight_scale"})
    weight, factor = next(dialects, ("", ""))
    if not weight or parts[weight].dtype != "U8":
        return None
    if parts["weight_scale"].dtype != "F8_E4M3" or parts[factor].dtype != "F32":
        return None
    require_shape(weight, parts[weight], (rows, columns // 2))
    require_shape("weight_scale", parts["weight_scale"], (rows, -(-columns // _NV_GROUP)))
    if parts[factor].shape != ():
        require_shape(factor, parts[factor], (1,))
    divides = factor == "weight_global_scale"

    def decode(arrays: Arrays) -> Decoded:
        value = arrays[factor].reshape(())
        with np.errstate(divide="ignore", over="ignore"):
            multiplier = np.float32(1) / value if divides else value
        if not (np.isfinite(value) and np.isfinite(multiplier)):
            msg = f"{factor} is {float(value)}, which cannot scale a weight"
            raise CheckpointError(msg)
        return Decoded(
            unpack_nibbles(arrays[weight])[:, :columns],
            arrays["weight_scale"],
            global_scale=float(multiplier),
        )

    return Encoding(
        "nvfp4",
        {weight: "U8", "weight_scale": "F8_E4M3", factor: "F32"},
        decode,
        Dtype.FP4_E2M1,
        ScaleDtype.FP8_E4M3,
        block_columns=_NV_GROUP,
        global_scale=True,
    )
