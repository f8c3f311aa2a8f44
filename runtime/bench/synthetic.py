"""Valid layer files with random weights, made as fast as memory can be written.

Invariant: every expert has bytes of its own, though all have the same values: speed does not depend on them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg._core import Dtype, LayerSpec, Matrix, PanelFormat, ScaleDtype, pack_expert, pack_table

_Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_CHUNK_BYTES: Final = 32 << 20
# A weight's magnitude is about its code's times its scale; 1/64 keeps sums of thousands of products near one.
_SCALES: Final[dict[ScaleDtype, np.generic]] = {
    ScaleDtype.F32: np.float32(1 / 64),
    ScaleDtype.F16: np.uint16(0x2400),
    ScaleDtype.BF16: np.uint16(0x3C80),
    ScaleDtype.FP8_E4M3: np.uint8(0x08),
    ScaleDtype.E8M0: np.uint8(121),
}


class LayerWriter:
    """Writes files of one geometry."""

    def __init__(self, spec: LayerSpec, threads: int) -> None:
        random = np.random.default_rng(0)
        gate, up = (_matrix(random, spec.gate_up, spec.intermediate_size, spec.hidden_size) for _ in range(2))
        down = _matrix(random, spec.down, spec.hidden_size, spec.intermediate_size)
        self._spec = spec
        self._threads = threads
        self._records = pack_expert(spec, gate, up, down)
        self._table = [
            entry for expert in range(spec.num_experts) for entry in pack_table(spec, expert, gate, up, down)
        ]

    @contextmanager
    def written(self, path: Path) -> Iterator[Path]:
        """A file that is there while the caller takes hold of it."""
        try:
            self.write(path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def write(self, path: Path) -> None:
        """A file that stays."""
        with path.open("wb") as file:
            self._write(file.fileno())

    def _write(self, file: int) -> None:
        spec = self._spec
        os.truncate(file, spec.file_bytes)
        os.pwrite(file, spec.header(), 0)
        for offset, data in self._table:
            os.pwrite(file, data, offset)
        at_once = max(1, _CHUNK_BYTES // spec.record_bytes)

        def write(unit: int) -> None:
            run = np.tile(self._records[unit], min(at_once, spec.num_experts)).data
            for expert in range(0, spec.num_experts, at_once):
                count = min(at_once, spec.num_experts - expert)
                _pwrite_all(
                    file, run[: count * spec.record_bytes], spec.record_offset(unit=unit, expert=expert)
                )

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(write, range(spec.num_units)))


def _pwrite_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _matrix(random: np.random.Generator, panel: PanelFormat, rows: int, columns: int) -> Matrix:
    scales = None
    if panel.scale_dtype is not ScaleDtype.NONE:
        groups = -(-columns // panel.scale_k) if panel.scale_k else 1
        scales = np.full((-(-rows // panel.scale_rows), groups), _SCALES[panel.scale_dtype])
    return Matrix(
        _codes(random, panel.dtype, rows, columns),
        scales,
        global_scale=1.0 if panel.global_scale else None,
    )


def _codes(random: np.random.Generator, dtype: Dtype, rows: int, columns: int) -> _Codes:
    """Any finite code of the dtype; 16-bit floats between 2^-8 and 2^-6, of both signs."""
    if dtype in (Dtype.BF16, Dtype.F16):
        bits = np.frombuffer(random.bytes(2 * rows * columns), np.uint16).reshape(rows, columns)
        if dtype is Dtype.BF16:
            return (bits & np.uint16(0x807F)) | np.uint16(0x3B80)
        return (bits & np.uint16(0x83FF)) | np.uint16(0x2000)
    codes = np.frombuffer(random.bytes(rows * columns), np.uint8).reshape(rows, columns)
    if dtype in (Dtype.INT4, Dtype.FP4_E2M1):
        return codes & np.uint8(0x0F)
    # Exponents from the upper half, without the lowest bit (all ones are NaN). Subnormal codes, one in ten
    # thousand in checkpoints, cost some processors a hundred cycles each: uniform codes would measure those.
    if dtype is Dtype.FP8_E4M3:
        return codes & np.uint8(0xF7) | np.uint8(0x40)
    if dtype is Dtype.FP8_E5M2:
        return codes & np.uint8(0xFB) | np.uint8(0x40)
    return codes
