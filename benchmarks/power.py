"""What the engine's workers cost when there is nothing to do, and what letting them sleep at once costs.

A decode step is imitated: a layer of cold experts, then a pause in which the GPU would work. The caller is
like the thread that answers a GPU: it has a core of its own and stays awake. Ways of waiting take turns, so
what else the machine does meets them all.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np

from lsg._core import Engine
from lsg.runtime import host, placement
from lsg.runtime.bench.shapes import SHAPES, layer_spec
from lsg.runtime.bench.synthetic import LayerWriter
from lsg.runtime.engine import SPIN_BESIDE_GPU_US, SPIN_US

WAYS = {"beside a GPU": SPIN_BESIDE_GPU_US, "on a CPU": SPIN_US, "--power-saving": 0}
REFERENCE = "beside a GPU"
# What a GPU does between two layers' experts: an H200 in 60 µs for a small model, more for others.
PAUSES_US = (0, 60, 200)
SHAPE, FORMAT, LAYERS = "A", "int4", 4
# The longest spin has ended.
SETTLED_S = 0.05
# The kernel's CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED; pthread_getcpuclockid makes clocks the same way.
_SCHED_CLOCK_OF_THREAD = 6


@click.command()
@click.option("--threads", type=click.IntRange(min=2), help="By default lsg-serve's, at least 2.")
@click.option("--seconds", default=0.03, show_default=True, help="Length of each measurement.")
@click.option("--repeat", default=100, show_default=True, help="Repetitions.")
@machine.scratch_option("Where the layer files go.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The result's file instead of benchmarks/results/power-MACHINE.json.",
)
def main(threads: int | None, seconds: float, repeat: int, scratch: Path, out: Path | None) -> None:
    """Measure idle CPU, the workers' CPU between layers, and a layer's time after a pause."""
    found = host.observe()
    facts = machine.describe(0)
    placed = placement.plan(found, threads=threads or max(2, found.default_threads()))
    spec = layer_spec(SHAPES[SHAPE], FORMAT)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        files = [Path(folder) / f"layer-{index}.lsgb" for index in range(LAYERS)]
        writer = LayerWriter(spec, os.cpu_count() or 1)
        for file in files:
            writer.write(file)
        ways = {name: Way(Calls(files, placed, spin)) for name, spin in WAYS.items()}
        os.sched_setaffinity(0, {_callers_cpu(placed)})
        for _ in range(repeat):
            for way in ways.values():
                way.measure(seconds)
    reference = ways[REFERENCE]
    result = {
        "shape": {"model": SHAPES[SHAPE].model, "format": FORMAT, "layers": LAYERS},
        "reference": REFERENCE,
        "ways": {name: {"spin_us": WAYS[name], **way.result(reference)} for name, way in ways.items()},
    }
    path = machine.save("power", facts | {"threads": placed.threads}, out, **result)
    for name, way in ways.items():
        click.echo(f"{name} (spins {WAYS[name]} µs): {way.line(reference)}")
    click.echo(path)


class Calls:
    """One engine, called with one token at a time for layers that take turns."""

    def __init__(self, files: list[Path], placed: placement.Placement, spin_us: int) -> None:
        before = _threads()
        self._engine = Engine(nodes=placed.workers, spin_us=spin_us)
        # The kernel's clock of one thread is exact; the process's lags behind by a tick for threads that run.
        self._clocks = [(~thread << 3) | _SCHED_CLOCK_OF_THREAD for thread in _threads() - before]
        spec, top_k = layer_spec(SHAPES[SHAPE], FORMAT), SHAPES[SHAPE].top_k
        nodes = placed.memory(0, spec.num_units)
        self._layers = [self._engine.add_layer(str(file), nodes=nodes) for file in files]
        random = np.random.default_rng(0)
        self._hidden = random.standard_normal((1, spec.hidden_size), np.float32)
        self._out = np.empty_like(self._hidden)
        self._weights = np.full((1, top_k), 1 / top_k, np.float32)
        self._ids = [
            np.ascontiguousarray(random.permutation(spec.num_experts)[None, :top_k], np.int32)
            for _ in range(64)
        ]
        self._count = 0

    def call(self) -> None:
        """One layer."""
        self._engine.forward(
            self._layers[self._count % len(self._layers)],
            self._hidden.ctypes.data,
            self._ids[self._count % len(self._ids)].ctypes.data,
            self._weights.ctypes.data,
            self._out.ctypes.data,
            tokens=1,
            top_k=self._weights.shape[1],
            dtype="f32",
        )
        self._count += 1

    def workers_cpu(self) -> float:
        """CPU seconds that the engine's own threads have used, on average."""
        return sum(map(time.clock_gettime, self._clocks)) / len(self._clocks)


class Share:
    """CPU time of wall time, 1 is one CPU."""

    def __init__(self) -> None:
        self._used = self._passed = 0.0

    def add(self, used: float, passed: float) -> None:
        """What was used while time passed."""
        self._used += used
        self._passed += passed

    @property
    def value(self) -> float:
        """Of all that was added."""
        return float(f"{self._used / self._passed:.4g}")


class Way:
    """One way of waiting, and what was measured of it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._idle = Share()
        self._pauses = {pause: Share() for pause in PAUSES_US if pause}
        # A value for each repetition.
        self.layer_us: dict[int, list[float]] = {pause: [] for pause in PAUSES_US}

    def measure(self, seconds: float) -> None:
        """Once more."""
        for pause_us in PAUSES_US:
            self._decode(seconds, pause_us)
        time.sleep(SETTLED_S)
        began, used = time.perf_counter(), time.process_time()
        time.sleep(2 * seconds)
        self._idle.add(time.process_time() - used, time.perf_counter() - began)

    def _decode(self, seconds: float, pause_us: int) -> None:
        took = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            self._calls.call()
            ended = time.perf_counter()
            took.append(1e6 * (ended - began))
            if pause_us:
                used = self._calls.workers_cpu()
                while time.perf_counter() < ended + pause_us / 1e6:
                    pass
                self._pauses[pause_us].add(self._calls.workers_cpu() - used, time.perf_counter() - ended)
        # The first one wakes workers that slept while the others were measured.
        self.layer_us[pause_us].append(statistics.median(took[1:] or took))

    def result(self, reference: "Way") -> dict[str, Any]:
        """What came out.

        idle_cpu: of the whole process, pause_cpu: of a worker, 1 is one CPU. cost_us: a layer's, against the
        reference in the same repetition; cost_share: of the reference's layer and its pause.
        """
        layer, cost, lost = {}, {}, {}
        for pause, mine in self.layer_us.items():
            pairs = list(zip(mine, reference.layer_us[pause], strict=True))
            layer[pause] = _quartiles(mine)
            cost[pause] = _quartiles([a - b for a, b in pairs])
            lost[pause] = _quartiles([(a - b) / (b + pause) for a, b in pairs])
        return {
            "idle_cpu": self._idle.value,
            "pause_cpu": {pause: share.value for pause, share in self._pauses.items()},
            "layer_us": layer,
            "cost_us": cost,
            "cost_share": lost,
        }

    def line(self, reference: "Way") -> str:
        """The same in short."""
        found = self.result(reference)
        layer, cost = found["layer_us"], found["cost_us"]
        layers = ", ".join(
            f"{layer[pause]['median']:.0f} µs ({cost[pause]['median']:+.0f}) after {pause}"
            for pause in PAUSES_US
        )
        paused = ", ".join(f"{100 * share:.1f} % in {pause}" for pause, share in found["pause_cpu"].items())
        return f"idle CPU {100 * found['idle_cpu']:.2f} %, workers' {paused}; layers {layers} µs of pause"


def _callers_cpu(placed: placement.Placement) -> int:
    """Its own as the first worker, else one that no worker has; with none left, the first worker's."""
    spare = sorted(os.sched_getaffinity(0) - set(placed.cpus))
    return placed.cpus[0] if placed.caller_works or not spare else spare[0]


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {name: float(f"{value:.4g}") for name, value in (("median", median), ("low", low), ("high", high))}


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


if __name__ == "__main__":
    main()
