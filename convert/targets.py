"""What becomes of an expert's matrices: one target per value of `--experts`.

Invariant: a target is a pure function of the matrix, so the same checkpoint and options give the same bytes
in any order and on any number of threads.
"""

from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype, quantize_int4

NAMES: Final = ("int4", "bf16", "fp16")
INT4_GROUP: Final = 32
# Rows per step of a 16-bit conversion, which works in float32 and float64: temporaries stay in the cache.
_ROWS: Final = 32
_HALF: Final = (Dtype.BF16, Dtype.F16)


class Converted(NamedTuple):
    """A matrix in the target's format; the squared error and norm are None where no value changed."""

    matrix: Matrix
    error: tuple[float, float] | None


class Target(Protocol):
    """How the experts are stored."""

    def panel(self, source: PanelFormat) -> PanelFormat:
        """The format that a matrix of this source format gets. Raises CheckpointError if there is none."""

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Convert one matrix of that format. Raises CheckpointError for values that cannot be stored."""


class Int4Target:
    """Symmetric int4, groups of 32 inputs, bf16 scales."""

    def __init__(self, *, search: bool) -> None:
        self._search = search

    def panel(self, source: PanelFormat) -> PanelFormat:
        """Same for every 16-bit source."""
        _require_half(source)
        return PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_rows=1, scale_k=INT4_GROUP)

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Quantise, with the squared error and norm."""
        codes, scales, error, norm = quantize_int4(_bits(matrix), source.dtype, search=self._search)
        return Converted(Matrix(codes, scales), (error, norm))


class HalfTarget:
    """The checkpoint's own bits when it has this dtype, the nearest numbers of this dtype otherwise."""

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = dtype

    def panel(self, source: PanelFormat) -> PanelFormat:
        """Plain 16-bit numbers."""
        _require_half(source)
        return PanelFormat(self._dtype)

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Pass through, or round to nearest even; a number out of range is refused, not made infinite."""
        if source.dtype == self._dtype:
            return Converted(matrix, None)
        bits = _bits(matrix)
        out = np.empty_like(bits)
        error = norm = 0.0
        for row in range(0, len(bits), _ROWS):
            rows = slice(row, row + _ROWS)
            value = _to_f32(bits[rows], source.dtype)
            out[rows] = _from_f32(value, self._dtype)
            stored = _to_f32(out[rows], self._dtype)
            if np.isinf(stored).any():
                msg = (
                    f"a weight of {np.abs(value).max():.4g} is beyond fp16, which ends at 65504; "
                    "convert with --experts bf16"
                )
                raise CheckpointError(msg)
            error += float(np.square(stored.astype(np.float64) - value).sum())
            norm += float(np.square(value.astype(np.float64)).sum())
        return Converted(Matrix(out), (error, norm))


def make_target(name: str, *, search: bool) -> Target:
    """The target that `--experts name` means."""
    if name == "int4":
        return Int4Target(search=search)
    return HalfTarget({"bf16": Dtype.BF16, "fp16": Dtype.F16}[name])


def _require_half(source: PanelFormat) -> None:
    if source.dtype not in _HALF:
        msg = f"experts stored as {source.dtype.name.lower()} cannot be converted to this format"
        raise CheckpointError(msg)


def _bits(matrix: Matrix) -> npt.NDArray[np.uint16]:
    return matrix.codes.view(np.uint16)


def _to_f32(bits: npt.NDArray[np.uint16], dtype: Dtype) -> npt.NDArray[np.float32]:
    if dtype == Dtype.BF16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def _from_f32(value: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[np.uint16]:
    if dtype == Dtype.BF16:
        word = value.view(np.uint32)
        # Round to nearest even: half of the last kept bit, less one when that bit is 0.
        return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):  # the caller refuses infinities
        return value.astype(np.float16).view(np.uint16)
