"""16-bit floating-point numbers: the nearest to what the source's numbers are worth.

Invariant: a value is rounded once, from its exact product, to nearest even.
"""

from typing import Final

import numpy as np

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat
from lsg.convert.targets.base import Converted
from lsg.convert.targets.quantize import row_blocks
from lsg.convert.targets.small_floats import F64, rounded
from lsg.convert.targets.values import decode

# Bits after the leading one, exponent of the smallest normal number, largest number, what to do beyond it.
_FORMATS: Final = {
    Dtype.BF16: (7, -126, float.fromhex("0x1.FEp127"), "the file is damaged"),
    Dtype.F16: (10, -14, 65504.0, "convert with --experts bf16"),
}


class Half:
    """Conversion to bf16 or fp16."""

    def __init__(self, dtype: Dtype) -> None:
        self.panel = PanelFormat(dtype)

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Round to nearest even; a number out of range is refused, not made infinite."""
        codes = np.empty(matrix.codes.shape, np.uint16)
        error = norm = 0.0
        for rows in row_blocks(matrix):
            weight = decode(matrix, source, rows)
            stored = self._nearest(weight)
            single = stored.astype(np.float32)  # exact: both formats are float32 with fewer bits
            if self.panel.dtype == Dtype.BF16:
                codes[rows] = single.view(np.uint32) >> 16
            else:
                codes[rows] = single.astype(np.float16).view(np.uint16)
            norm += float(np.square(weight).sum())
            stored -= weight
            error += float(np.square(stored, out=stored).sum())
        return Converted(Matrix(codes, bias=matrix.bias, input_order=matrix.input_order), (error, norm))

    def _nearest(self, weight: F64) -> F64:
        mantissa_bits, min_exponent, largest, advice = _FORMATS[self.panel.dtype]
        magnitude = rounded(np.abs(weight), mantissa_bits, min_exponent)
        if magnitude.max() > largest:
            name = "bf16" if self.panel.dtype == Dtype.BF16 else "fp16"
            found = np.abs(weight).max()
            msg = f"a weight of {found:.4g} is beyond {name}, which ends at {largest:.5g}; {advice}"
            raise CheckpointError(msg)
        return np.copysign(magnitude, weight, out=magnitude)
