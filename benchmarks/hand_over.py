"""What it costs to hand a layer from a captured CUDA graph to the engine and back, each way of doing it.

A graph of 48 layers, each some GPU work and a hand-over, is replayed with other routing each time. Added per
layer: the graph's time, less that of a graph with the GPU work alone, less what the engine computed (by its
trace). Every way's results are first compared with the engine's own, bit for bit. Needs torch and a GPU.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np
import torch

from lsg import _core
from lsg.runtime import host, placement
from lsg.runtime.bench.shapes import SHAPES, Shape, layer_spec
from lsg.runtime.bench.synthetic import LayerWriter

WAYS = ("hostfunc", "memops", "kernels")
LAYERS = 48
TRACE_HEADER = np.dtype([("magic", "S8"), ("capacity", "u8"), ("count", "u8"), ("reserved", "u8", 5)])
TRACE_EVENT = np.dtype([("begin_ns", "u8"), ("end_ns", "u8"), ("layer", "i4"), ("tokens", "i4")])


@dataclass(frozen=True)
class Job:
    """What the engine computes for a token. empty: no expert at all."""

    name: str
    shape: Shape
    empty: bool = False


TINY = Shape("tiny", 2048, 32, 8, 1)
JOBS = {
    "empty": Job("empty", TINY, empty=True),
    "tiny": Job("tiny", TINY),
    "A": Job("A", SHAPES["A"]),
}


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the JSON.")
@click.option("--scratch", type=click.Path(file_okay=False, path_type=Path), help="For the layer files.")
@click.option("--job", "jobs", multiple=True, type=click.Choice(list(JOBS)), help="Only these jobs.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="Only these ways.")
@click.option("--batch", "batches", multiple=True, type=int, help="Only these numbers of tokens.")
@click.option("--gpu-us", multiple=True, type=float, help="GPU work of a layer; by default 5 and 40 µs.")
@click.option("--threads", type=int, help="Threads of the engine; by default as lsg-serve.")
@click.option("--spin-us", "spins", multiple=True, type=int, help="How long idle workers spin; 50 and 1000.")
@click.option("--load", type=click.Choice(["map", "huge"]), default="map", show_default=True)
@click.option("--replays", default=100, show_default=True, help="Timed replays of a graph.")
def main(
    out: Path | None,
    scratch: Path | None,
    jobs: tuple[str, ...],
    ways: tuple[str, ...],
    batches: tuple[int, ...],
    gpu_us: tuple[float, ...],
    threads: int | None,
    spins: tuple[int, ...],
    load: str,
    replays: int,
) -> None:
    """Measure, and print one line for each combination."""
    plan = placement.plan(host.observe(), threads=threads)
    report: dict[str, Any] = {
        "machine": machine.describe(plan.threads),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": LAYERS,
        "runs": [],
    }
    for name in jobs or JOBS:
        job = JOBS[name]
        for spin_us, batch in product(
            spins or (50, 1000), batches or ((1,) if job.shape is TINY else (1, 4, 16))
        ):
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                bench = Bench(Path(directory), job, plan, load, spin_us)
                for micros in gpu_us or (5.0, 40.0):
                    filler = Filler(batch, job.shape.hidden_size, micros)
                    for way in ways or WAYS:
                        run = {
                            "job": name,
                            "batch": batch,
                            "way": way,
                            "spin_us": spin_us,
                            "gpu_us": filler.us,
                        }
                        try:
                            run |= bench.measure(way, batch, filler, replays)
                        except Exception as error:
                            # The other ways are still worth measuring; the table shows what failed.
                            run["error"] = str(error)
                        report["runs"].append(run)
                        click.echo(line(run))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    click.echo()
    for run in report["runs"]:
        click.echo(line(run))


def line(run: dict[str, Any]) -> str:
    """A run in words."""
    start = f"{run['job']:5} batch {run['batch']:2}, {run['gpu_us']:5.1f} µs of GPU work, {run['way']:8}, "
    start += f"spin {run['spin_us']:4}: "
    if "error" in run:
        return start + f"failed: {run['error']}"
    return start + (
        f"layer {run['layer_us']['median']:7.1f} µs, engine {run['engine_us']['median']:7.1f}, alone "
        f"{run['alone_us']['median']:7.1f}; added {run['added_us']['median']:5.1f} "
        f"({run['added_us']['low']:.1f} … {run['added_us']['high']:.1f}), "
        f"over the engine alone {run['added_over_alone_us']:5.1f}"
    )


class Filler:
    """GPU work of about this many microseconds on the stream of a layer: matrix products, as in a model."""

    def __init__(self, batch: int, hidden: int, us: float) -> None:
        self._weight = torch.randn(hidden, hidden, device="cuda", dtype=torch.bfloat16) / hidden**0.5
        self._x = torch.randn(batch, hidden, device="cuda", dtype=torch.bfloat16)
        self._count = 1
        one = self._time()
        self._count = max(1, round(us / one))
        self.us = self._time()
        self.graph_us = self.us * LAYERS

    def __call__(self) -> torch.Tensor:
        """Enqueue it; returns something [batch, hidden] that depends on it."""
        x = self._x
        for _ in range(self._count):
            x = x @ self._weight
        return x

    def _time(self) -> float:
        graph = capture(lambda: [self() for _ in range(LAYERS)])
        return statistics.median(replay_us(graph, lambda: None, 50)) / LAYERS


class Bench:
    """An engine over layer files of one job's shape."""

    def __init__(self, directory: Path, job: Job, plan: placement.Placement, load: str, spin_us: int) -> None:
        self._job = job
        shape = job.shape
        spec = layer_spec(shape, "int4")
        # Cold weights: at least 2 GB of a real shape take turns.
        count = 1 if shape is TINY else -(-2_000_000_000 // spec.file_bytes)
        self._trace = directory / "trace"
        self._core = plan.cpus[0] if plan.caller_works else -1
        self._engine = _core.Engine(nodes=plan.workers, spin_us=spin_us)
        writer = LayerWriter(spec, plan.threads)
        self._handles = []
        for _ in range(count):
            with writer.written(directory / "layer.lsgb") as path:
                self._handles.append(self._engine.add_layer(str(path), load=load))
        self._engine.trace_to(str(self._trace))

    def handle(self, layer: int) -> int:
        """The engine's handle for a layer of the graph; the files take turns."""
        return self._handles[layer % len(self._handles)]

    def measure(self, way: str, batch: int, filler: Filler, replays: int) -> dict[str, Any]:
        """Times per layer, after the results were found right. Raises RuntimeError when they are not."""
        shape = self._job.shape
        hand_over = _core.HandOver(
            self._engine,
            way=way,
            tokens=batch,
            hidden_size=shape.hidden_size,
            top_k=shape.top_k,
            core=self._core,
        )
        random = np.random.default_rng(0)
        hidden = torch.randn(batch, shape.hidden_size, device="cuda", dtype=torch.bfloat16)
        ids = torch.empty(LAYERS, batch, shape.top_k, device="cuda", dtype=torch.int32)
        weights = torch.rand(batch, shape.top_k, device="cuda")
        choices = [torch.from_numpy(self._choose(random, batch)).cuda() for _ in range(16)]
        outs: list[torch.Tensor] = []

        def enqueue() -> None:
            outs.clear()
            stream = torch.cuda.current_stream().cuda_stream
            for layer in range(LAYERS):
                filler()
                outs.append(torch.empty_like(hidden))
                hand_over.submit(
                    self.handle(layer),
                    stream=stream,
                    hidden=hidden.data_ptr(),
                    topk_ids=ids[layer].data_ptr(),
                    topk_weights=weights.data_ptr(),
                    out=outs[-1].data_ptr(),
                    tokens=batch,
                    top_k=shape.top_k,
                    hidden_size=shape.hidden_size,
                    dtype="bf16",
                )

        ids.copy_(choices[0])
        graph = capture(enqueue)
        for choice in choices[:3]:
            ids.copy_(choice)
            hidden.normal_()
            graph.replay()
            torch.cuda.synchronize()
            self._check(hidden, ids, weights, outs)
        step = iter(range(10**9))
        before = self._count()
        layers_us = [
            time / LAYERS
            for time in replay_us(graph, lambda: ids.copy_(choices[next(step) % len(choices)]), replays)
        ]
        engine_us = self._durations(before).reshape(-1, LAYERS).mean(axis=1)[-replays:]
        alone_us = self._alone(hidden, choices, weights, max(3, replays // 4))
        added = [layer - filler.us - engine for layer, engine in zip(layers_us, engine_us, strict=True)]
        hand_over.stop()
        alone = machine.spread(list(alone_us))
        return {
            "layer_us": machine.spread(layers_us),
            "engine_us": machine.spread(list(engine_us)),
            "alone_us": alone,
            "added_us": machine.spread(added),
            "added_over_alone_us": statistics.median(layers_us) - filler.us - alone["median"],
        }

    def _choose(self, random: np.random.Generator, batch: int) -> np.ndarray:
        shape = self._job.shape
        if self._job.empty:
            return np.full((LAYERS, batch, shape.top_k), -1, np.int32)
        keys = random.random((LAYERS, batch, shape.num_experts))
        return np.ascontiguousarray(keys.argsort(axis=2)[:, :, : shape.top_k], dtype=np.int32)

    def _forward(
        self, layer: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(hidden)
        self._engine.forward(
            self.handle(layer),
            hidden.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            out.data_ptr(),
            tokens=hidden.shape[0],
            top_k=ids.shape[1],
            dtype="bf16",
        )
        return out

    def _check(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, outs: list[torch.Tensor]
    ) -> None:
        hidden, ids, weights = hidden.cpu(), ids.cpu(), weights.cpu()
        for layer, out in enumerate(outs):
            expected = self._forward(layer, hidden, ids[layer], weights)
            if not torch.equal(out.cpu().view(torch.int16), expected.view(torch.int16)):
                difference = (out.cpu().float() - expected.float()).abs().max()
                msg = f"layer {layer} differs from the engine's own result by up to {difference}"
                raise RuntimeError(msg)

    def _alone(
        self, hidden: torch.Tensor, choices: list[torch.Tensor], weights: torch.Tensor, rounds: int
    ) -> np.ndarray:
        """Microseconds a layer when the engine has nothing to wait for."""
        hidden, weights = hidden.cpu(), weights.cpu()
        before = self._count()
        for step in range(rounds):
            ids = choices[step % len(choices)].cpu()
            for layer in range(LAYERS):
                self._forward(layer, hidden, ids[layer], weights)
        return self._durations(before).reshape(-1, LAYERS).mean(axis=1)

    def _count(self) -> int:
        return int(np.fromfile(self._trace, TRACE_HEADER, 1)["count"][0])

    def _durations(self, since: int) -> np.ndarray:
        events = np.fromfile(self._trace, TRACE_EVENT, self._count(), offset=TRACE_HEADER.itemsize)[since:]
        return (events["end_ns"] - events["begin_ns"]) / 1e3


def capture(enqueue: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what `enqueue` puts onto the current stream, run once before as sglang does."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        enqueue()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        enqueue()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, prepare: Callable[[], object], replays: int) -> list[float]:
    """Microseconds of each replay on the GPU's clock."""
    times = []
    for step in range(replays + 3):
        prepare()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if step >= 3:
            times.append(begin.elapsed_time(end) * 1e3)
    return times


if __name__ == "__main__":
    main()
