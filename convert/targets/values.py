"""What the codes of a matrix are worth: FORMAT.md's rule (code − zero_point) · scale · global_scale.

Invariant: the float64 values are exact: a code has at most 11 significant bits, a scale and a global scale
24 each (where both are there, 2 and 4 and 24), and no product leaves float64's range.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype
from lsg.convert.targets.small_floats import E2M1, E4M3, E5M2, E8M0_VALUES, F64

HALF: Final = (Dtype.BF16, Dtype.F16)
_TABLES: Final = {Dtype.FP8_E4M3: E4M3.values, Dtype.FP8_E5M2: E5M2.values, Dtype.FP4_E2M1: E2M1.values}
# The smallest pattern, sign apart, that is no finite number; every larger one is none either.
_NOT_FINITE: Final = {Dtype.BF16: 0x7F80, Dtype.F16: 0x7C00, Dtype.FP8_E4M3: 0x7F, Dtype.FP8_E5M2: 0x7C}


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
    if dtype == ScaleDtype.FP8_E4M3:
        return E4M3.values.take(scales.view(np.uint8))
    if dtype == ScaleDtype.E8M0:
        return E8M0_VALUES.take(scales.view(np.uint8))
    if dtype == ScaleDtype.BF16:
        return bf16_values(scales.view(np.uint16))
    return scales.view(np.float16 if dtype == ScaleDtype.F16 else np.float32).astype(np.float64)


def bf16_values(bits: npt.NDArray[np.uint16]) -> F64:
    """Values of raw bf16 numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def require_finite(matrix: Matrix, panel: PanelFormat) -> None:
    """Raise CheckpointError if any number of the matrix is a NaN or infinite."""
    infinity = _NOT_FINITE.get(panel.dtype)
    if infinity is not None:
        bits = 16 if panel.dtype in HALF else 8
        codes = matrix.codes.view(f"u{bits // 8}")
        # Two passes without a temporary: the largest positive number, then the most negative one.
        if codes.view(f"i{bits // 8}").max() >= infinity or codes.max() >= infinity | 1 << (bits - 1):
            _refuse("weights")
    if matrix.scales is not None and not np.isfinite(scale_values(matrix.scales, panel.scale_dtype)).all():
        _refuse("scales")
    if matrix.global_scale is not None and not np.isfinite(matrix.global_scale):
        _refuse("global scale")
    if matrix.bias is not None and not np.isfinite(matrix.bias).all():
        _refuse("bias")


def _refuse(what: str) -> None:
    msg = f"NaN or infinity among its {what}; the file is damaged, download it again"
    raise CheckpointError(msg)


def _code_values(codes: npt.NDArray[np.generic], panel: PanelFormat) -> F64:
    dtype = panel.dtype
    if dtype in _TABLES:
        return _TABLES[dtype].take(codes.view(np.uint8))
    if dtype == Dtype.BF16:
        return bf16_values(codes.view(np.uint16))
    if dtype == Dtype.F16:
        return codes.view(np.float16).astype(np.float64)
    if panel.zero_point:
        return codes.astype(np.float64)
    if dtype == Dtype.INT8:
        return codes.view(np.int8).astype(np.float64)
    return codes.astype(np.float64) - 8.0


def _spread(per_group: F64, panel: PanelFormat, shape: tuple[int, ...]) -> F64:
    """Repeat what rows and groups share for each of their weights; what a whole row shares broadcasts."""
    rows, cols = shape
    if panel.scale_rows > 1:
        per_group = np.repeat(per_group, panel.scale_rows, axis=0)[:rows]
    if panel.scale_k == 0:
        return per_group
    return np.repeat(per_group, panel.scale_k, axis=1)[:, :cols]
