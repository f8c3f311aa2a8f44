"""fp4 e2m1 in its two published forms: MXFP4 (4.25 bits a weight) and NVFP4 (4.5 bits).

Invariant: a group's scale is the best of a few neighbouring ones, by the squared error of its weights; the
first of several equally good ones.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg._core import Dtype, PanelFormat, ScaleDtype
from lsg.convert.targets.quantize import SMALLEST, STEP_ROWS, Scales, groups_first, groups_last, sum_of_group
from lsg.convert.targets.small_floats import E2M1, E4M3, E8M0_VALUES, F32

_Bytes = npt.NDArray[np.uint8]


class Mxfp4:
    """Groups of 32 inputs that share a power of two."""

    panel = PanelFormat(Dtype.FP4_E2M1, ScaleDtype.E8M0, scale_rows=1, scale_k=32)
    row_block = STEP_ROWS
    # The standard's exponent (OCP Microscaling Formats 1.0, §6.3), which clips what is above 6 of the 8 that
    # the exponent reaches, and its neighbours: one higher never clips, one lower is finer for all but the
    # largest. Further ones are never better: higher halves the resolution for nothing, lower clips more than
    # it can gain.
    _CANDIDATES: Final = (0, 1, -1)

    def __init__(self, *, search: bool) -> None:
        self._steps = self._CANDIDATES if search else self._CANDIDATES[:1]

    def global_scale(self, largest: float) -> None:
        """None: the format has none."""

    def quantize(self, weight: F32, global_scale: float | None) -> tuple[_Bytes, Scales]:
        """e2m1 codes and e8m0 scales."""
        groups = groups_first(weight, self.panel.scale_k)
        largest = np.maximum(np.abs(groups).max(axis=0), np.float32(SMALLEST))
        exponent = (largest.view(np.uint32) >> 23).astype(np.int16) - 2
        candidates = ((exponent + step).astype(np.uint8) for step in self._steps)
        values = E8M0_VALUES.astype(np.float32)
        return _best(weight, groups, candidates, values)


class Nvfp4:
    """Groups of 16 inputs with an e4m3 scale, and a float32 scale for the whole matrix."""

    panel = PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_rows=1, scale_k=16, global_scale=True)
    row_block = STEP_ROWS
    # In codes, 8 of which are a factor of two, from the scale that maps the largest magnitude to 6: up to 4
    # (a finer grid for weights between 2 and 4), and a little clipping.
    _CANDIDATES: Final = (0, 1, 2, 3, 4, 5, 6, -1, -2)

    def __init__(self, *, search: bool) -> None:
        self._steps = self._CANDIDATES if search else self._CANDIDATES[:1]

    def global_scale(self, largest: float) -> float:
        """The largest group's scale becomes the largest e4m3 number."""
        return float(np.float32(max(largest, SMALLEST) / (E2M1.largest * E4M3.largest)))

    def quantize(self, weight: F32, global_scale: float | None) -> tuple[_Bytes, Scales]:
        """e2m1 codes and e4m3 scales."""
        assert global_scale is not None
        groups = groups_first(weight, self.panel.scale_k)
        largest = np.abs(groups).max(axis=0)
        nearest = E4M3.encode(largest / np.float32(E2M1.largest * global_scale)).astype(np.int16)
        candidates = (np.clip(nearest + step, 1, E4M3.largest_code).astype(np.uint8) for step in self._steps)
        values = (E4M3.values * global_scale).astype(np.float32)
        return _best(weight, groups, candidates, values)


def _best(weight: F32, groups: F32, candidates: Iterable[_Bytes], values: F32) -> tuple[_Bytes, Scales]:
    """Codes of the weights, and for each group the candidate scale with the least squared error."""
    magnitude = np.abs(groups)
    least = np.full(groups.shape[1], np.inf, np.float32)
    scales = np.zeros(groups.shape[1], np.uint8)
    unit: F32 | None = None
    for candidate in candidates:
        scale = values[candidate]
        scaled = magnitude * (np.float32(1) / scale)
        scaled -= E2M1.rounded(np.minimum(scaled, np.float32(E2M1.largest)))
        # In squares of the first candidate's scale: the square of a tiny scale itself would underflow.
        unit = scale if unit is None else unit
        error = sum_of_group(np.square(scaled, out=scaled)) * np.square(scale / unit)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(scales, candidate, where=better)
    codes = E2M1.encode(groups * (np.float32(1) / values[scales]))
    rows, cols = weight.shape
    return groups_last(codes, rows, cols), scales.reshape(rows, -1)
