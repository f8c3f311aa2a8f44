"""Floating-point formats of a few bits: their values, and rounding to them.

Invariant: every step is one exact or correctly rounded IEEE operation on one element, so the same bits come
out on every machine; nothing depends on the order of a sum or on flushed subnormals.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Floats = TypeVar("Floats", F32, F64)


def rounded(magnitude: Floats, mantissa_bits: int, min_exponent: int) -> Floats:
    """The nearest numbers with so many bits after the leading one, ties to even; below the minimum, a grid.

    magnitude: not negative, and finite even when multiplied by 2^24 (float32) or 2^53 (float64).
    """
    if magnitude.dtype == np.float32:
        digits, power = 23, (magnitude.view(np.uint32) & np.uint32(0xFF << 23)).view(np.float32)
    else:
        digits, power = 52, (magnitude.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64)
    np.maximum(power, magnitude.dtype.type(2.0**min_exponent), out=power)
    # Added to a number, it pushes the digits that do not fit out at the right; with 1.5 the sum stays between
    # two powers of two.
    power *= magnitude.dtype.type(1.5 * 2.0 ** (digits - mantissa_bits))
    total = magnitude + power
    total -= power
    return total


@dataclass(frozen=True)
class SmallFloat:
    """Sign, exponent and mantissa, with subnormals; the codes 0 … largest_code are finite, rising numbers."""

    exponent_bits: int
    mantissa_bits: int
    largest: float
    largest_code: int

    @property
    def _bias(self) -> int:
        return int(2 ** (self.exponent_bits - 1)) - 1

    @cached_property
    def values(self) -> F64:
        """The value of every code; NaN where it is not a finite number."""
        magnitudes = np.arange(1 << (self.exponent_bits + self.mantissa_bits))
        exponent = magnitudes >> self.mantissa_bits
        mantissa = magnitudes & ((1 << self.mantissa_bits) - 1)
        significand = np.where(exponent > 0, 1 << self.mantissa_bits, 0) + mantissa
        value = np.ldexp(
            significand.astype(np.float64), np.maximum(exponent, 1) - self._bias - self.mantissa_bits
        )
        value[self.largest_code + 1 :] = np.nan
        return np.concatenate([value, -value])

    def rounded(self, magnitude: F32) -> F32:
        """The nearest values of numbers that are neither negative nor above the largest value."""
        return rounded(magnitude, self.mantissa_bits, 1 - self._bias)

    def encode(self, values: F32) -> npt.NDArray[np.uint8]:
        """The codes of the nearest values, ties to even; what is beyond the largest becomes the largest."""
        value = self.rounded(np.minimum(np.abs(values), np.float32(self.largest)))
        # Seen as integers, a float32 and its code differ by the exponents' biases, but for subnormals: they
        # count in steps of their own, and there what the bits give is too small.
        code = (value.view(np.uint32) >> np.uint32(23 - self.mantissa_bits)).view(np.int32)
        code -= np.int32((127 - self._bias) << self.mantissa_bits)
        value *= np.float32(2.0 ** (self._bias - 1 + self.mantissa_bits))
        np.minimum(value, np.float32(1 << self.mantissa_bits), out=value)
        np.maximum(code, value.astype(np.int32), out=code)
        sign_bit = self.exponent_bits + self.mantissa_bits
        sign = values.view(np.uint32) >> np.uint32(31 - sign_bit)
        sign &= np.uint32(1 << sign_bit)
        code |= sign.view(np.int32)
        return code.astype(np.uint8)


E4M3: Final = SmallFloat(4, 3, largest=448.0, largest_code=0x7E)
E5M2: Final = SmallFloat(5, 2, largest=57344.0, largest_code=0x7B)
E2M1: Final = SmallFloat(2, 1, largest=6.0, largest_code=0x7)
# 2^(code − 127): a power of two without sign; the last code is NaN.
E8M0_VALUES: Final[F64] = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)
