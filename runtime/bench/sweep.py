"""Shapes × formats × batches, each with the limits that held while it was measured.

Invariant: a percentage compares figures that are tenths of a second apart, on the same threads and cores: a
shared machine's memory can be twice as fast a few seconds later.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lsg._core import Engine, Instruction
from lsg.runtime.bench import limits
from lsg.runtime.bench.layers import SPIN_US, Call, Layers
from lsg.runtime.bench.limits import Limits
from lsg.runtime.bench.shapes import SHAPES, layer_spec
from lsg.runtime.placement import Placement

MEMORY: Final = "memory"
ARITHMETIC: Final = "arithmetic"
# A cell is measured in about so many slices, between limits that are measured for so many seconds each. Those
# during which a limit changed are taken again, but not for longer than so many times the cell.
_SLICES: Final = 4
_BRIEF: Final = 0.04
_PATIENCE: Final = 3


@dataclass(frozen=True)
class Options:
    """What to measure and how.

    placement: who computes. seconds: of each cell. num_experts: None for the shape's. working_set: bytes of
    the layers that take turns. load: how the engine holds them.
    """

    shapes: tuple[str, ...]
    formats: tuple[str, ...]
    batches: tuple[int, ...]
    placement: Placement
    isa: str
    activations: str
    load: str
    num_experts: int | None
    working_set: float
    seconds: float
    scratch: Path


@dataclass(frozen=True)
class Spread:
    """Median, and what nine of ten calls exceed or stay under."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One layer shape, format and batch.

    bytes_per_s: of the experts that some token chose, counted once. percent_of_memory and
    percent_of_arithmetic: each call's of the limits beside it, the median; `bound` names the larger. The
    limits themselves are medians too.
    """

    shape: str
    model: str
    format: str
    num_experts: int
    layers: int
    batch: int
    calls: int
    int8_inputs: bool
    instruction: str
    seconds: Spread
    bytes_per_s: Spread
    operations_per_s: float
    memory_bytes_per_s: float
    peak_operations_per_s: float
    percent_of_memory: float
    percent_of_arithmetic: float
    bound: str


@dataclass(frozen=True)
class Slice:
    """Some calls of a cell, and the limits that held meanwhile: memory and the cell's instruction."""

    calls: list[Call]
    held: Limits


@dataclass(frozen=True)
class Group:
    """The cells of one shape and format, and what it took to get there."""

    cells: list[Cell]
    limits: Limits
    written_bytes: int
    writing_seconds: float


def sweep(options: Options) -> Iterator[Group]:
    """Measure, a shape and format at a time."""
    placed = options.placement
    threads, cores = placed.threads, placed.cpus
    # Found here once so that a bad level or core is refused before anything is written.
    isa = Engine(nodes=placed.workers, isa=options.isa).isa
    probe = limits.Probe(threads, cores, isa)
    before = probe.measure()
    # Which instruction is the fastest must not depend on one moment.
    best = limits.best(before, probe.measure())
    for shape_name in options.shapes:
        for format in options.formats:
            shape = SHAPES[shape_name]
            spec = layer_spec(shape, format, options.num_experts)
            engine = Engine(
                nodes=placed.workers, isa=options.isa, activations=options.activations, spin_us=SPIN_US
            )
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="lsg-bench-", dir=options.scratch) as scratch:
                layers = Layers(
                    engine, placed, spec, shape.top_k, options.working_set, Path(scratch), options.load
                )
            writing = time.perf_counter() - began
            count = layers.count
            facts = {
                "shape": shape_name,
                "model": shape.model,
                "format": format,
                "num_experts": spec.num_experts,
                "layers": count,
            }
            cells = []
            for batch in options.batches:
                int8 = layers.int8_inputs(batch)
                instruction, _ = best.peak(limits.INT8 if int8 else limits.FLOAT)
                slices = _measure(layers, batch, options.seconds, probe, instruction)
                cells.append(make_cell(facts, batch, int8, instruction, layers.operations(batch), slices))
            # Gone before the next layers are made: memory should hold one working set.
            del layers, engine
            after = probe.measure()
            yield Group(cells, limits.mean(before, after), count * spec.file_bytes, writing)
            before, best = after, limits.best(best, after)


def _measure(
    layers: Layers, batch: int, seconds: float, probe: limits.Probe, instruction: Instruction
) -> list[Slice]:
    """Calls for about `seconds`, in slices: those with steady limits, if there are any."""
    slices: dict[bool, list[Slice]] = {True: [], False: []}
    spent = {True: 0.0, False: 0.0}
    before = probe.measure((instruction,), _BRIEF)
    while spent[True] < seconds and sum(spent.values()) < _PATIENCE * seconds:
        calls = layers.measure(batch, seconds / _SLICES)
        after = probe.measure((instruction,), _BRIEF)
        steady = limits.steady(before, after)
        slices[steady].append(Slice(calls, limits.mean(before, after)))
        spent[steady] += sum(call.seconds for call in calls)
        before = after
    return slices[True] or slices[False]


def make_cell(
    facts: dict[str, Any],
    batch: int,
    int8_inputs: bool,
    instruction: Instruction,
    operations: int,
    slices: Sequence[Slice],
) -> Cell:
    """A cell out of its slices. facts: the fields before `batch`. operations: of a call."""
    beside = [
        (call, one.held.bytes_per_s, one.held.peaks[instruction]) for one in slices for call in one.calls
    ]
    seconds = _spread([call.seconds for call, _, _ in beside])
    percent_of_memory = statistics.median(
        100 * call.nbytes / call.seconds / memory for call, memory, _ in beside
    )
    percent_of_arithmetic = statistics.median(
        100 * operations / call.seconds / peak for call, _, peak in beside
    )
    return Cell(
        **facts,
        batch=batch,
        calls=len(beside),
        int8_inputs=int8_inputs,
        instruction=instruction.name,
        seconds=seconds,
        bytes_per_s=_spread([call.nbytes / call.seconds for call, _, _ in beside]),
        operations_per_s=operations / seconds.median,
        memory_bytes_per_s=statistics.median(memory for _, memory, _ in beside),
        peak_operations_per_s=statistics.median(peak for _, _, peak in beside),
        percent_of_memory=percent_of_memory,
        percent_of_arithmetic=percent_of_arithmetic,
        bound=MEMORY if percent_of_memory > percent_of_arithmetic else ARITHMETIC,
    )


def _spread(values: list[float]) -> Spread:
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return Spread(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth])
