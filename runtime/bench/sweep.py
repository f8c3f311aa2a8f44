"""Shapes × formats × batches, each with the limits that held while it was measured.

Invariant: a percentage compares two figures that are seconds apart, on the same threads and cores.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lsg._core import Engine
from lsg.runtime.bench import limits
from lsg.runtime.bench.layers import Call, Layers
from lsg.runtime.bench.limits import Limits
from lsg.runtime.bench.shapes import SHAPES, layer_spec
from lsg.runtime.placement import Placement

MEMORY: Final = "memory"
ARITHMETIC: Final = "arithmetic"


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
    percent_of_arithmetic: of the limits beside it, `bound` names the larger.
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
    before = limits.measure(threads, cores, isa)
    for shape_name in options.shapes:
        for format in options.formats:
            shape = SHAPES[shape_name]
            spec = layer_spec(shape, format, options.num_experts)
            engine = Engine(nodes=placed.workers, isa=options.isa, activations=options.activations)
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="lsg-bench-", dir=options.scratch) as scratch:
                layers = Layers(
                    engine, placed, spec, shape.top_k, options.working_set, Path(scratch), options.load
                )
            writing = time.perf_counter() - began
            measured = [
                (
                    batch,
                    layers.measure(batch, options.seconds),
                    layers.operations(batch),
                    layers.int8_inputs(batch),
                )
                for batch in options.batches
            ]
            count = layers.count
            # Gone before the next layers are made: memory should hold one working set.
            del layers, engine
            after = limits.measure(threads, cores, isa)
            between = limits.mean(before, after)
            facts = {
                "shape": shape_name,
                "model": shape.model,
                "format": format,
                "num_experts": spec.num_experts,
                "layers": count,
            }
            cells = [
                _cell(facts, batch, calls, operations, int8_inputs, between)
                for batch, calls, operations, int8_inputs in measured
            ]
            yield Group(cells, between, count * spec.file_bytes, writing)
            before = after


def _cell(
    facts: dict[str, Any],
    batch: int,
    calls: Sequence[Call],
    operations: int,
    int8_inputs: bool,
    held: Limits,
) -> Cell:
    memory = held.bytes_per_s
    instruction, peak = held.peak(limits.INT8 if int8_inputs else limits.FLOAT)
    seconds = _spread([call.seconds for call in calls])
    nbytes = statistics.fmean(call.nbytes for call in calls)
    rate = _spread([call.nbytes / call.seconds for call in calls])
    least = {MEMORY: nbytes / memory, ARITHMETIC: operations / peak}
    return Cell(
        **facts,
        batch=batch,
        calls=len(calls),
        int8_inputs=int8_inputs,
        instruction=instruction.name,
        seconds=seconds,
        bytes_per_s=rate,
        operations_per_s=operations / seconds.median,
        memory_bytes_per_s=memory,
        peak_operations_per_s=peak,
        percent_of_memory=100 * rate.median / memory,
        percent_of_arithmetic=100 * least[ARITHMETIC] / seconds.median,
        bound=max(least, key=lambda limit: least[limit]),
    )


def _spread(values: list[float]) -> Spread:
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return Spread(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth])
