"""What bits are worth: the numbers in tensors by safetensors' names, and FORMAT.md's rule for matrices.

    (code − zero_point) · scale · global_scale

Invariant: the float64 values are exact: a code has at most 11 significant bits, a scale and a global scale
24 each (where both are there, 2 and 4 and 24), and no product leaves float64's range. Whether a number is
finite is told from its bits, which nothing can round and no NaN can hide from.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# The smallest bit pattern, sign apart, that is no number: infinity, or NaN where there is no infinity.
_NOT_FINITE: Final[dict[str, tuple[type[np.unsignedinteger], type[np.signedinteger], int]]] = {
    "F32": (np.uint32, np.int32, 0x7F800000),
    "BF16": (np.uint16, np.int16, 0x7F80),
    "F16": (np.uint16, np.int16, 0x7C00),
    "F8_E4M3": (np.uint8, np.int8, 0x7F),
    "F8_E5M2": (np.uint8, np.int8, 0x7C),
}
_VIEWS: Final = {"F32": np.float32, "BF16": np.uint16, "F16": np.uint16, "I32": np.uint32}


def is_finite(data: npt.NDArray[np.uint8], numbers: str) -> bool:
    """Whether none of the numbers is a NaN or an infinity."""
    if data.size == 0:
        return True
    if numbers == "F8_E8M0":
        return int(data.max()) != 0xFF
    if numbers not in _NOT_FINITE:
        return True
    unsigned, signed, limit = _NOT_FINITE[numbers]
    # Two passes without a temporary: the largest positive number, then the most negative one.
    sign = int(np.iinfo(signed).max) + 1
    return int(data.view(signed).max()) < limit and int(data.view(unsigned).max()) < sign | limit


def view_of(data: npt.NDArray[np.uint8], numbers: str) -> Array:
    """Raw bits in items of the right width; F32 as floats."""
    return data.view(_VIEWS.get(numbers, np.uint8))


def to_float32(bits: Array, numbers: str) -> F32:
    """What `view_of` gave for an F32, F16 or BF16 tensor, as floats; exact."""
    if numbers == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if numbers == "F16" else bits


def small_float_values(exponent_bits: int, mantissa_bits: int, largest_code: int) -> F64:
    """The value of every code of a format with sign and subnormals; NaN beyond the largest code."""
    magnitudes = np.arange(1 << (exponent_bits + mantissa_bits))
    exponent = magnitudes >> mantissa_bits
    mantissa = magnitudes & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, 1 << mantissa_bits, 0) + mantissa
    bias = (1 << (exponent_bits - 1)) - 1
    value = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    value[largest_code + 1 :] = np.nan
    return np.concatenate([value, -value])


E4M3_VALUES: Final = small_float_values(4, 3, 0x7E)
E5M2_VALUES: Final = small_float_values(5, 2, 0x7B)
E2M1_VALUES: Final = small_float_values(2, 1, 0x7)
# 2^(code − 127): a power of two without sign; the last code is NaN.
E8M0_VALUES: Final[F64] = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)

_CODES: Final = {
    Dtype.FP8_E4M3: E4M3_VALUES,
    Dtype.FP8_E5M2: E5M2_VALUES,
    Dtype.FP4_E2M1: E2M1_VALUES,
}
_SCALES: Final = {ScaleDtype.FP8_E4M3: E4M3_VALUES, ScaleDtype.E8M0: E8M0_VALUES}
_FLOATS: Final = {
    Dtype.BF16: "BF16",
    Dtype.F16: "F16",
    ScaleDtype.BF16: "BF16",
    ScaleDtype.F16: "F16",
    ScaleDtype.F32: "F32",
}


def decode(matrix: Matrix, panel: PanelFormat, rows: slice) -> F64:
    """Values of some rows; the first must be a multiple of `panel.scale_rows`."""
    codes = matrix.codes[rows]
    value = _code_values(codes, panel)
    scales = matrix.scales
    if scales is None:
        return value
    of_rows = slice(rows.start // panel.scale_rows, -(-rows.stop // panel.scale_rows))
    if matrix.zero_points is not None:
        value -= _spread(matrix.zero_points[of_rows].astype(np.float64), panel, codes.shape)
    scale = scale_values(scales[of_rows], panel.scale_dtype)
    if matrix.global_scale is not None:
        scale *= matrix.global_scale
    value *= _spread(scale, panel, codes.shape)
    return value


def scale_values(scales: npt.NDArray[np.generic], dtype: ScaleDtype) -> F64:
    """Values of raw scales; NaN for codes that are none."""
    if dtype in _SCALES:
        return _SCALES[dtype].take(scales.view(np.uint8))
    return _float_values(scales, _FLOATS[dtype])


def _code_values(codes: npt.NDArray[np.generic], panel: PanelFormat) -> F64:
    dtype = panel.dtype
    if dtype in _CODES:
        return _CODES[dtype].take(codes.view(np.uint8))
    if dtype in _FLOATS:
        return _float_values(codes, _FLOATS[dtype])
    if panel.zero_point:
        return codes.astype(np.float64)
    if dtype == Dtype.INT8:
        return codes.view(np.int8).astype(np.float64)
    return codes.astype(np.float64) - 8.0


def _float_values(raw: npt.NDArray[np.generic], numbers: str) -> F64:
    return to_float32(raw.view(_VIEWS[numbers]), numbers).astype(np.float64)


def _spread(per_group: F64, panel: PanelFormat, shape: tuple[int, ...]) -> F64:
    """Repeat what rows and groups share for each of their weights; what a whole row shares broadcasts."""
    rows, cols = shape
    if panel.scale_rows > 1:
        per_group = np.repeat(per_group, panel.scale_rows, axis=0)[:rows]
    if panel.scale_k == 0:
        return per_group
    return np.repeat(per_group, panel.scale_k, axis=1)[:, :cols]
