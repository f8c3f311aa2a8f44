"""Symmetric int4, groups of 32 inputs, bf16 scales: the engine's fastest format, 4.5 bits a weight.

Invariant: 16-bit sources go to the core as they are. The numbers of other sources are first rounded to bf16
(exact for fp8 whose scales are powers of two); the error reported includes that rounding.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype, quantize_int4
from lsg.convert.targets.base import Converted
from lsg.convert.targets.quantize import STEP_ROWS, Quantized, Scales
from lsg.convert.targets.small_floats import F32, rounded
from lsg.convert.targets.values import HALF

GROUP: Final = 32


class Int4:
    """Conversion to int4 by the core."""

    panel = PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_rows=1, scale_k=GROUP)

    def __init__(self, *, search: bool) -> None:
        self._search = search
        self._wider = Quantized(_OfFloats(search=search))

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Quantise, with the squared error and norm."""
        if source.dtype not in HALF:
            return self._wider.convert(matrix, source)
        bits = matrix.codes.view(np.uint16)
        codes, scales, error, norm = quantize_int4(bits, source.dtype, search=self._search)
        stored = Matrix(codes, scales, bias=matrix.bias, input_order=matrix.input_order)
        return Converted(stored, (error, norm))


class _OfFloats:
    panel = Int4.panel
    row_block = STEP_ROWS

    def __init__(self, *, search: bool) -> None:
        self._search = search

    def global_scale(self, largest: float) -> None:
        return None

    def quantize(self, weight: F32, global_scale: float | None) -> tuple[npt.NDArray[np.uint8], Scales]:
        bf16 = np.copysign(rounded(np.abs(weight), mantissa_bits=7, min_exponent=-126), weight)
        bits = (bf16.view(np.uint32) >> 16).astype(np.uint16)
        codes, scales, _, _ = quantize_int4(bits, Dtype.BF16, search=self._search)
        return codes, scales
