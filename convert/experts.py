"""Converts the experts: a thread takes an expert from the checkpoint to its place in the layer file.

Invariant: memory holds at most one expert per thread; what waits in the queue is two numbers.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final

from lsg import CheckpointError, LsgError
from lsg._core import Matrix, PanelFormat, crc32c, keep_freed_memory, pack_expert, pack_table
from lsg.convert.journal import Journal, SlabDone
from lsg.convert.schedule import LayerPlan
from lsg.convert.sources import Source
from lsg.convert.targets import Converted, Target
from lsg.convert.targets.values import require_finite
from lsg.convert.writer import LayerWriter

Slabs = dict[tuple[int, int], SlabDone]

# A crash costs at most the work of this long; a sync this seldom costs nothing measurable.
COMMIT_SECONDS: Final = 2.0
# Enough that the threads have work while the main thread waits for the disk.
_QUEUE: Final = 1024


class UnsuitableError(CheckpointError):
    """The target cannot store these values: no repaired checkpoint, only another target, would help."""


class DamagedError(CheckpointError):
    """An expert's numbers are none; `slab` is its (layer, expert)."""

    def __init__(self, message: str, slab: tuple[int, int]) -> None:
        super().__init__(message)
        self.slab = slab


def convert_experts(
    source: Source,
    target: Target,
    todo: Iterable[tuple[LayerPlan, int]],
    writers: Mapping[int, LayerWriter],
    journal: Journal,
    threads: int,
    advance: Callable[[int], None],
) -> Slabs:
    """Convert these experts; their slabs, by (layer, expert), once they are durable.

    After Ctrl-C, or when the source proves bad, it lets the running experts finish and journals them. Raises
    CheckpointError (UnsuitableError: the target is to blame; DamagedError: the numbers are), OSError.
    """
    slabs: Slabs = {}
    committer = _Committer(writers, journal)
    expert_bytes: dict[int, int] = {}
    finished: SimpleQueue[Future[SlabDone]] = SimpleQueue()
    running = 0

    def collect(future: Future[SlabDone]) -> None:
        slab = future.result()
        slabs[slab.layer, slab.expert] = slab
        committer.add(slab)
        advance(expert_bytes[slab.layer])

    # Every expert needs arrays of the same sizes.
    keep_freed_memory()
    with ThreadPoolExecutor(threads, thread_name_prefix="expert") as pool:
        try:
            for layer, expert in todo:
                expert_bytes[layer.source.index] = layer.source.expert_bytes
                if running == _QUEUE:
                    collect(finished.get())
                    running -= 1
                future = pool.submit(
                    _convert_expert, source, target, layer, writers[layer.source.index], expert
                )
                future.add_done_callback(finished.put)
                running += 1
            for _ in range(running):
                collect(finished.get())
        except (KeyboardInterrupt, LsgError):
            pool.shutdown(cancel_futures=True)
            while not finished.empty():
                future = finished.get()
                if not future.cancelled() and future.exception() is None:
                    collect(future)
            committer.commit()
            raise
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    committer.commit()
    return slabs


class _Committer:
    """Journals slabs in batches: first their layer files are made durable, then the journal's lines."""

    def __init__(self, writers: Mapping[int, LayerWriter], journal: Journal) -> None:
        self._writers = writers
        self._journal = journal
        self._waiting: list[SlabDone] = []
        self._last = time.monotonic()

    def add(self, slab: SlabDone) -> None:
        self._waiting.append(slab)
        if time.monotonic() - self._last >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        for layer in sorted({slab.layer for slab in self._waiting}):
            self._writers[layer].sync()
        if self._waiting:
            self._journal.append(self._waiting)
        self._waiting = []
        self._last = time.monotonic()


def _convert_expert(
    source: Source, target: Target, layer: LayerPlan, writer: LayerWriter, expert: int
) -> SlabDone:
    found = source.read(layer.source, expert)

    def convert(name: str, matrix: Matrix, panel: PanelFormat) -> Converted:
        where = f"{layer.source.prefix}.{expert}.{name}_proj"
        try:
            return target.convert(matrix, panel)
        except CheckpointError as error:
            try:
                require_finite(matrix, panel)
            except CheckpointError:
                msg = f"{where}: {error}"
                raise DamagedError(msg, (layer.source.index, expert)) from error
            msg = f"{where}: {error}"
            raise UnsuitableError(msg) from error

    gate = None if found.gate is None else convert("gate", found.gate, layer.source.gate_up)
    up = convert("up", found.up, layer.source.gate_up)
    down = convert("down", found.down, layer.source.down)
    matrices = gate.matrix if gate else None, up.matrix, down.matrix
    records = pack_expert(layer.spec, *matrices)
    writer.write_slab(expert, records)
    writer.write_table(pack_table(layer.spec, expert, *matrices))
    return SlabDone(
        layer=layer.source.index,
        expert=expert,
        crc32c=crc32c(records.reshape(-1)),
        errors=[gate.error if gate else None, up.error, down.error],
    )
