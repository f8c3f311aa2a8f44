"""What the engine's threads cost when there is nothing to do, and what letting them sleep at once costs.

A decode step is imitated: a layer on the engine, then a pause in which the GPU would work. CPU use is the
process's, of one thread: 100 % is the caller alone. The hand-over is a layer so small that only waking, the
barriers and joining are left.
"""

import time
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np

from lsg._core import Engine, LayerSpec
from lsg.runtime.bench.shapes import SHAPES, Shape, layer_spec
from lsg.runtime.bench.synthetic import LayerWriter

MODES = {"default": 50, "power saving": 0, "spin 1 ms": 1000}
PAUSE_S = 200e-6
TINY = Shape("tiny", 64, 64, 4, 1)
REAL = SHAPES["A"]
REAL_EXPERTS = 32


@click.command()
@click.option("--threads", type=int, help="Threads of the engine; by default as many as CPUs.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of each measurement.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    default=machine.ROOT / "build" / "bench",
    show_default="build/bench",
    help="Where the layer files go.",
)
def main(threads: int | None, seconds: float, scratch: Path) -> None:
    """Measure idle CPU, CPU use and speed while decoding, and the hand-over."""
    scratch.mkdir(parents=True, exist_ok=True)
    facts = machine.describe(threads or 0)
    threads = facts["threads"] = threads or facts["logical_cpus"]
    runs = {}
    for name, spin_us in MODES.items():
        runs[name] = {"spin_us": spin_us, **_measure(threads, spin_us, scratch, seconds)}
        click.echo(f"{name}: {runs[name]}")
    path = machine.save("power", facts, pause_us=PAUSE_S * 1e6, runs=runs)
    click.echo(path.relative_to(machine.ROOT))


def _measure(threads: int, spin_us: int, scratch: Path, seconds: float) -> dict[str, Any]:
    engine = Engine(threads=threads, spin_us=spin_us)
    small = Calls(engine, layer_spec(TINY, "bf16"), TINY.top_k, scratch)
    large = Calls(engine, layer_spec(REAL, "int4", REAL_EXPERTS), REAL.top_k, scratch)
    large.run(seconds / 4, 0)
    time.sleep(0.1)
    began, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    idle = (time.process_time() - used) / (time.perf_counter() - began)
    alone, _ = large.run(seconds, 0)
    decode, busy = large.run(seconds, PAUSE_S)
    handover, _ = small.run(seconds / 2, 0)
    handover_paused, _ = small.run(seconds / 2, PAUSE_S)
    return {
        "idle_cpu": float(f"{idle:.3g}"),
        "layer_us": machine.spread(alone),
        "layer_us_after_pause": machine.spread(decode),
        "cpu_while_decoding": float(f"{busy:.3g}"),
        "handover_us": machine.spread(handover),
        "handover_us_after_pause": machine.spread(handover_paused),
    }


class Calls:
    """Forward passes of one token through layers that take turns."""

    def __init__(self, engine: Engine, spec: LayerSpec, top_k: int, scratch: Path) -> None:
        self._engine = engine
        self._layers = []
        for _ in range(4):
            with LayerWriter(spec, engine.threads).written(scratch / "layer.lsgb") as path:
                self._layers.append(engine.add_layer(str(path)))
        random = np.random.default_rng(0)
        self._hidden = random.standard_normal((1, spec.hidden_size), np.float32)
        self._out = np.empty_like(self._hidden)
        self._weights = np.full((1, top_k), 1 / top_k, np.float32)
        self._ids = [
            np.ascontiguousarray(random.permutation(spec.num_experts)[None, :top_k], np.int32)
            for _ in range(64)
        ]

    def run(self, seconds: float, pause: float) -> tuple[list[float], float]:
        """Microseconds of the fastest tenth, the median call and the slowest tenth, and CPU use."""
        took = []
        began, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self._engine.forward(
                self._layers[len(took) % len(self._layers)],
                self._hidden.ctypes.data,
                self._ids[len(took) % len(self._ids)].ctypes.data,
                self._weights.ctypes.data,
                self._out.ctypes.data,
                tokens=1,
                top_k=self._weights.shape[1],
                dtype="f32",
            )
            end = time.perf_counter()
            took.append(1e6 * (end - start))
            while time.perf_counter() < end + pause:
                pass
        cpu = (time.process_time() - used) / (time.perf_counter() - began)
        return list(np.percentile(took, [10, 50, 90])), cpu


if __name__ == "__main__":
    main()
