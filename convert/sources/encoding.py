"""How one matrix is written in a checkpoint, and how its numbers become the core's.

A recogniser (`lsg.convert.sources.encodings`) looks at the parts of a matrix [rows, columns]: names, dtypes
and shapes, no data. If it knows them it answers with an Encoding, whose `decode` later turns their bytes into
codes, scales and zero points.

Invariant: `panel` and `matrix` agree, and no value changes on the way: scales are at most repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# Widest group of inputs and the blocks of outputs that every kernel knows.
_MAX_SCALE_K: Final = 128
_MIN_SCALE_K: Final = 16
_SCALE_ROWS: Final = 32

SCALE_DTYPES: Final = {
    "F32": ScaleDtype.F32,
    "F16": ScaleDtype.F16,
    "BF16": ScaleDtype.BF16,
    "F8_E8M0": ScaleDtype.E8M0,
}


class Part(NamedTuple):
    """One tensor of a matrix, as its header has it: safetensors' dtype and the shape."""

    dtype: str
    shape: tuple[int, ...]


Parts = Mapping[str, Part]


class Decoded(NamedTuple):
    """Codes [rows, columns]; scales and zero points [row blocks, column blocks] or None.

    order: the inputs that the columns take, where these have been sorted by group.
    """

    codes: Array
    scales: Array | None = None
    zero_points: npt.NDArray[np.uint8] | None = None
    global_scale: float | None = None
    order: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True)
class Encoding:
    """A known way to write a matrix. A block of 0 is one block for the whole side.

    numbers: the parts that make the matrix, with what their bytes are (safetensors' dtypes; what is stored as
    U8 can be an F8_E8M0). Arrays given to `decode` hold raw bits, except for F32. ordered: an index tells
    which group an input belongs to, so what is decoded may have an order. as_stored: the part that `decode`
    hands over as the codes without looking at it.
    """

    name: str
    numbers: Mapping[str, str]
    decode: Callable[[Arrays], Decoded]
    dtype: Dtype
    scale_dtype: ScaleDtype = ScaleDtype.NONE
    block_rows: int = 1
    block_columns: int = 0
    zero_point: bool = False
    global_scale: bool = False
    ordered: bool = False
    as_stored: str | None = None

    def panel(
        self, selections: Sequence[slice], *, bias: bool, rows_move: bool = False, k_permutation: bool = False
    ) -> PanelFormat:
        """The format of the matrices that these rows make. Raises CheckpointError if the blob has none.

        rows_move: the rows will be put into another order, so they cannot share a scale.
        """
        if 0 < self.block_columns < _MIN_SCALE_K:
            msg = f"groups of {self.block_columns} inputs are not supported, the smallest has {_MIN_SCALE_K}"
            raise CheckpointError(msg)
        # A block of 128 outputs is four of 32; one that a selection cuts elsewhere is told row by row.
        blocked = self.block_rows % _SCALE_ROWS == 0 and self.block_columns > 0
        aligned = all(rows.step == 1 and rows.start % _SCALE_ROWS == 0 for rows in selections)
        return PanelFormat(
            self.dtype,
            self.scale_dtype,
            scale_rows=_SCALE_ROWS if blocked and aligned and not rows_move else 1,
            scale_k=min(self.block_columns, _MAX_SCALE_K),
            zero_point=self.zero_point,
            bias=bias,
            global_scale=self.global_scale,
            k_permutation=k_permutation,
        )

    def matrix(
        self, decoded: Decoded, rows: slice, panel: PanelFormat, bias: npt.NDArray[np.float32] | None
    ) -> Matrix:
        """The chosen rows of a decoded matrix, in the format that `panel` gave."""
        columns = decoded.codes.shape[1]
        order = None
        if panel.k_permutation:
            order = np.arange(columns, dtype=np.uint32) if decoded.order is None else decoded.order
        return Matrix(
            np.ascontiguousarray(decoded.codes[rows]),
            self._spread(decoded.scales, rows, columns, panel),
            self._spread(decoded.zero_points, rows, columns, panel),
            None if bias is None else np.ascontiguousarray(bias[rows]),
            decoded.global_scale,
            order,
        )

    def _spread(self, blocks: Array | None, rows: slice, columns: int, panel: PanelFormat) -> Array | None:
        """One value per scale of the panel, from one per block."""
        if blocks is None:
            return None
        step = panel.scale_rows * rows.step
        if self.block_rows == 1:
            blocks = blocks[rows.start : rows.stop : step]
        else:
            index = np.arange(rows.start, rows.stop, step)
            blocks = blocks[index // self.block_rows if self.block_rows else np.zeros_like(index)]
        if self.block_columns > panel.scale_k:
            groups = -(-columns // panel.scale_k)
            blocks = np.repeat(blocks, self.block_columns // panel.scale_k, axis=1)[:, :groups]
        return np.ascontiguousarray(blocks)


def take_rows(matrix: Matrix, rows: npt.NDArray[np.uint32]) -> Matrix:
    """The matrix's rows in this order; each must have scales of its own."""

    def take(array: Array | None) -> Array | None:
        return None if array is None else array[rows]

    codes: Array = matrix.codes
    return Matrix(
        codes[rows],
        take(matrix.scales),
        take(matrix.zero_points),
        take(matrix.bias),
        matrix.global_scale,
        matrix.input_order,
    )


def block_of(part: str, side: str, size: int, blocks: int) -> int:
    """The power of two that cuts `size` into so many blocks; 0 for one. Raises CheckpointError."""
    if blocks == 1:
        return 0
    for block in (1 << exponent for exponent in range(size.bit_length())):
        if -(-size // block) == blocks:
            return block
    msg = f"{part} has {blocks} values for {size} {side}; no block size that is a power of two fits"
    raise CheckpointError(msg)


def require_shape(part: str, found: Part, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the part has this shape."""
    if found.shape != shape:
        msg = f"{part} has shape {list(found.shape)}, expected {list(shape)}"
        raise CheckpointError(msg)
