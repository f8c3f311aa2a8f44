"""Quantising: a few rows of float32 at a time, with the error that the stored numbers really have.

Invariant: whatever the source's format and the target's, the error is that of decoding what will be written,
against the exact values of the source.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Matrix, PanelFormat
from lsg.convert.targets.base import Converted
from lsg.convert.targets.small_floats import F32
from lsg.convert.targets.values import decode

# Weights per step: its temporaries stay in the second-level cache.
_STEP_WEIGHTS: Final = 1 << 16
# Rows per step are a multiple: no source scale spans more.
STEP_ROWS: Final = 32
# A group whose largest weight is below becomes zero, and one above is refused: far from where float32 would
# overflow or lose digits on the way, far beyond any weight of a model.
SMALLEST: Final = 2.0**-100
LARGEST: Final = 2.0**100

Scales = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]


class Quantizer(Protocol):
    """One format's choice of scales and codes."""

    panel: PanelFormat
    row_block: int
    """Rows that must be quantised together, a multiple of 32."""

    def global_scale(self, largest: float) -> float | None:
        """The matrix's own scale, from its largest magnitude; None in formats without one."""

    def quantize(self, weight: F32, global_scale: float | None) -> tuple[npt.NDArray[np.uint8], Scales]:
        """Codes [N, K] and scales of some rows [N, K]; no magnitude is above LARGEST."""


class Quantized:
    """A conversion by a quantiser."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.panel = quantizer.panel

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Quantise, with the squared error and norm."""
        blocks = row_blocks(matrix, self._quantizer.row_block)
        global_scale = None
        if self.panel.global_scale:
            largest = max(float(np.abs(decode(matrix, source, rows)).max()) for rows in blocks)
            global_scale = self._quantizer.global_scale(largest)
        codes = np.empty(matrix.codes.shape, np.uint8)
        scales = []
        error = norm = 0.0
        for rows in blocks:
            weight = decode(matrix, source, rows)
            largest = float(np.abs(weight).max())
            if largest > LARGEST:
                msg = (
                    f"a weight of {largest:.4g} is far beyond any model's; "
                    "the file is damaged, download it again"
                )
                raise CheckpointError(msg)
            codes[rows], row_scales = self._quantizer.quantize(weight.astype(np.float32), global_scale)
            scales.append(row_scales)
            stored = Matrix(codes[rows], row_scales, global_scale=global_scale)
            norm += float(np.square(weight).sum())
            weight -= decode(stored, self.panel, slice(0, rows.stop - rows.start))
            error += float(np.square(weight, out=weight).sum())
        stored = Matrix(
            codes,
            np.concatenate(scales),
            bias=matrix.bias,
            global_scale=global_scale,
            input_order=matrix.input_order,
        )
        return Converted(stored, (error, norm))


def groups_first(weight: F32, group: int) -> F32:
    """[N, K] → [group, N · ⌈K/group⌉], padded with zeros: whatever is done to all groups is done to a row."""
    rows, cols = weight.shape
    padded = np.zeros((rows, -(-cols // group) * group), np.float32)
    padded[:, :cols] = weight
    return np.ascontiguousarray(padded.reshape(-1, group).T)


def groups_last(codes: npt.NDArray[np.uint8], rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """Undo groups_first."""
    return np.ascontiguousarray(codes.T).reshape(rows, -1)[:, :cols]


def sum_of_group(terms: F32) -> F32:
    """[group, …] → […], always in the same order: halves are added until one is left."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    total: F32 = terms[0]
    return total


def row_blocks(matrix: Matrix, multiple: int = STEP_ROWS) -> list[slice]:
    """Rows to work on at a time, `multiple` of them or a few times as many."""
    rows, cols = matrix.codes.shape
    step = max(_STEP_WEIGHTS // cols // multiple, 1) * multiple
    return [slice(row, min(row + step, rows)) for row in range(0, rows, step)]
