"""Converts the experts: a thread makes an expert's records, another one writes them.

Writing costs a thread its time but hardly any of a core's, so it has threads of its own.

Invariant: memory holds as many experts as there are buffers: a thread takes one before it reads anything, and
what waits in the queue is two numbers.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Final, NamedTuple

from lsg import CheckpointError, LsgError
from lsg._core import LayerSpec, convert_expert, crc32c, keep_freed_memory
from lsg.convert.direct import Bytes
from lsg.convert.journal import Journal, SlabDone
from lsg.convert.schedule import LayerPlan, writing_threads
from lsg.convert.sources import Source
from lsg.convert.targets import Target
from lsg.convert.writer import LayerWriter, SlabBuffer

Slabs = dict[tuple[int, int], SlabDone]

# A crash costs at most the work of this long; a sync this seldom costs nothing measurable.
COMMIT_SECONDS: Final = 2.0
# Enough that the threads have work while the main thread waits for the disk.
_QUEUE: Final = 1024


class UnsuitableError(CheckpointError):
    """The target cannot store these values: no repaired checkpoint, only another target, would help."""


def convert_experts(
    source: Source,
    target: Target,
    todo: Iterable[tuple[LayerPlan, int]],
    writers: Mapping[int, LayerWriter],
    journal: Journal,
    threads: int,
    slabs_in_flight: int,
    advance: Callable[[int], None],
) -> Slabs:
    """Convert these experts; their slabs, by (layer, expert), once they are durable.

    After Ctrl-C, or when the source proves bad, it lets the running experts finish and journals them. Raises
    CheckpointError (UnsuitableError: the target is to blame, not the numbers), OSError.
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
    specs = [writer.spec for writer in writers.values()]
    with _Threads(threads, slabs_in_flight, specs, finished) as pool:
        try:
            for layer, expert in todo:
                expert_bytes[layer.source.index] = layer.source.expert_bytes
                if running == _QUEUE:
                    collect(finished.get())
                    running -= 1
                pool.start(
                    partial(_make_slab, source, target, layer, expert),
                    partial(_write_slab, writers[layer.source.index], expert),
                )
                running += 1
            for _ in range(running):
                collect(finished.get())
        except (KeyboardInterrupt, LsgError):
            pool.stop()
            while not finished.empty():
                future = finished.get()
                if future.exception() is None:
                    collect(future)
            committer.commit()
            raise
        except BaseException:
            pool.stop()
            raise
    committer.commit()
    return slabs


class _Slab(NamedTuple):
    """An expert on its way to the disk."""

    records: Bytes
    table: list[tuple[int, bytes]]
    done: SlabDone


class _Threads:
    """Threads that make slabs and threads that write them, with the buffers between them."""

    def __init__(
        self,
        threads: int,
        slabs_in_flight: int,
        specs: Sequence[LayerSpec],
        finished: SimpleQueue[Future[SlabDone]],
    ) -> None:
        self._makers = ThreadPoolExecutor(threads, thread_name_prefix="expert")
        self._writers = ThreadPoolExecutor(writing_threads(threads), thread_name_prefix="write")
        self._finished = finished
        self._free: SimpleQueue[SlabBuffer] = SimpleQueue()
        for _ in range(slabs_in_flight):
            self._free.put(SlabBuffer(specs))

    def __enter__(self) -> "_Threads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # In this order: what is made is written.
        self._makers.shutdown()
        self._writers.shutdown()

    def start(self, make: Callable[[SlabBuffer], _Slab], write: Callable[[_Slab], SlabDone]) -> None:
        """Make and write a slab; the future of that comes out of `finished`."""

        def pass_on(made: Future[Future[SlabDone]]) -> None:
            if made.cancelled():
                return
            error = made.exception()
            if error is None:
                made.result().add_done_callback(self._finished.put)
            else:
                failed: Future[SlabDone] = Future()
                failed.set_exception(error)
                self._finished.put(failed)

        self._makers.submit(self._make, make, write).add_done_callback(pass_on)

    def stop(self) -> None:
        """Let the running slabs finish, forget the others."""
        self._makers.shutdown(cancel_futures=True)
        self._writers.shutdown()

    def _make(
        self, make: Callable[[SlabBuffer], _Slab], write: Callable[[_Slab], SlabDone]
    ) -> Future[SlabDone]:
        buffer = self._free.get()
        try:
            slab = make(buffer)
            written = self._writers.submit(write, slab)
        except BaseException:
            self._free.put(buffer)
            raise
        written.add_done_callback(lambda _: self._free.put(buffer))
        return written


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


def _make_slab(source: Source, target: Target, layer: LayerPlan, expert: int, buffer: SlabBuffer) -> _Slab:
    found = source.read(layer.source, expert, in_file=True)
    records = buffer.records(layer.spec, expert)
    try:
        table, crc, errors = convert_expert(
            layer.spec,
            expert,
            *found,
            layer.source.gate_up,
            layer.source.down,
            records,
            search=target.search,
        )
    except CheckpointError as error:
        # The core knows the number, the source the tensor that it came from.
        source.check(layer.source, expert)
        msg = f"{layer.source.prefix}.{expert}.{error}"
        raise UnsuitableError(msg) from error
    except OSError:
        # The core knows that a file cannot be read, the source which.
        source.check(layer.source, expert)
        raise
    shares = [(offset, len(data), crc32c(data)) for offset, data in table]
    return _Slab(records, table, SlabDone(layer.source.index, expert, crc, errors, shares))


def _write_slab(writer: LayerWriter, expert: int, slab: _Slab) -> SlabDone:
    writer.write_slab(expert, slab.records)
    writer.write_table(slab.table)
    return slab.done
