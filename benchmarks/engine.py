"""How fast the engine reads experts, beside the rate at which this machine can read memory.

Weights are cold: layers take turns, the working set is at least 2 GB, tokens choose random distinct experts.
A rate counts each expert's bytes once per call, however many tokens chose it. The limit is of the same run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np
import numpy.typing as npt

from lsg import _core
from lsg._core import Dtype, Engine, LayerSpec, Matrix, PanelFormat, ScaleDtype

PANELS = {
    "int4": PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32),
    "bf16": PanelFormat(Dtype.BF16),
}
# Two layers must fit into the page cache of a machine with 16 GB; what is cut off shows in the results.
MAX_LAYER_BYTES = 2_500_000_000


@dataclass(frozen=True)
class Shape:
    """A model's MoE layer."""

    label: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int


SHAPES = {
    "A": Shape("Qwen3-30B-A3B", 2048, 768, 128, 8),
    "B": Shape("Qwen3-Next-80B-A3B", 2048, 512, 512, 10),
    "C": Shape("GLM-4.7", 5120, 1536, 160, 8),
    "D": Shape("Kimi-K2.5, fewer experts", 7168, 2048, 48, 8),
}


@click.command()
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    default=machine.ROOT / "build" / "bench",
    show_default="build/bench",
    help="Where the layer files go; they stay in the page cache.",
)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="Only these shapes.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(list(PANELS)), help="Only these formats."
)
@click.option("--batch", "batches", multiple=True, type=int, help="Only these numbers of tokens.")
@click.option("--working-set", default=2.0, show_default=True, help="GB of layer files that take turns.")
@click.option(
    "--experts", type=int, help="Experts of a layer; by default the shape's own, in at most 2.5 GB."
)
@click.option("--seconds", default=1.0, show_default=True, help="Length of a repetition.")
@click.option("--repeat", default=5, show_default=True, help="Repetitions.")
@click.option("--threads", type=int, help="Threads of the engine; by default as many as CPUs.")
@click.option(
    "--load",
    type=click.Choice(["map", "huge"]),
    default="huge",
    show_default=True,
    help="Weights in the layer files' own pages, or in 2 MiB pages.",
)
@click.option("--save/--no-save", default=True, show_default=True, help="Write benchmarks/results.")
def main(
    scratch: Path,
    shapes: tuple[str, ...],
    formats: tuple[str, ...],
    batches: tuple[int, ...],
    working_set: float,
    experts: int | None,
    seconds: float,
    repeat: int,
    threads: int | None,
    load: str,
    save: bool,
) -> None:
    """Measure whole MoE layers, cold."""
    scratch.mkdir(parents=True, exist_ok=True)
    facts = machine.describe(threads or 0)
    threads = facts["threads"] = threads or facts["logical_cpus"]
    limits = [_core.read_bandwidth(threads)]
    runs = []
    for name in shapes or SHAPES:
        for dtype in formats or PANELS:
            shape = SHAPES[name]
            spec = _spec(shape, dtype, experts)
            with _layer_files(scratch, spec, working_set * 1e9) as files:
                bench = Bench(spec, shape.top_k, files, threads, load)
                for batch in batches or (1, 4, 16, 64, 512):
                    run = {"shape": name, "model": shape.label, "format": dtype, "load": load}
                    run |= {"experts": spec.num_experts, "layers": len(files), "batch": batch}
                    run |= bench.measure(batch, seconds, repeat)
                    runs.append(run)
                    rate, flops = run["bytes_per_s"]["median"] / 1e9, run["flops"]["median"] / 1e9
                    percent = 100e9 * rate / limits[-1]
                    click.echo(
                        f"{name} {dtype}, {spec.num_experts} experts, {batch:3} tokens: {rate:6.1f} GB/s, "
                        f"{percent:3.0f} % of the limit, {flops:6.0f} GFLOP/s"
                    )
                # Unmap before the next files are made: memory should hold one working set.
                del bench
            limits.append(_core.read_bandwidth(threads))
    limit = machine.spread(limits)
    click.echo(
        f"limit: {limit['median'] / 1e9:.1f} GB/s ({limit['low'] / 1e9:.1f} … {limit['high'] / 1e9:.1f})"
    )
    if save:
        path = machine.save("engine", facts, limit_bytes_per_s=limit, runs=runs)
        click.echo(path.relative_to(machine.ROOT))


class Bench:
    """One engine over layer files of one geometry."""

    def __init__(self, spec: LayerSpec, top_k: int, files: list[Path], threads: int, load: str) -> None:
        self._spec = spec
        self._top_k = top_k
        self._engine = Engine(threads=threads)
        self._layers = [self._engine.add_layer(str(file), load=load) for file in files]
        self._random = np.random.default_rng(0)
        # Touch every expert of every layer once, so that no page is mapped for the first time while timed.
        tokens = -(-spec.num_experts // top_k)
        ids = np.resize(np.arange(spec.num_experts, dtype=np.int32), (tokens, top_k))
        for layer in self._layers:
            self._forward(layer, *self._inputs(tokens), np.ascontiguousarray(ids))

    def measure(self, batch: int, seconds: float, repeat: int) -> dict[str, Any]:
        """Rates of `repeat` repetitions, each of whole rounds through the layers for at least `seconds`."""
        spec = self._spec
        hidden, out, weights = self._inputs(batch)
        choices = [self._choose(batch) for _ in range(64)]
        unique = [int(np.unique(ids).size) * spec.num_units * spec.record_bytes for ids in choices]
        byte_rates, layer_rates = [], []
        step = count()
        for _ in range(repeat):
            nbytes = calls = 0
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                for layer in self._layers:
                    choice = next(step) % len(choices)
                    self._forward(layer, hidden, out, weights, choices[choice])
                    nbytes += unique[choice]
                    calls += 1
            elapsed = time.perf_counter() - began
            byte_rates.append(nbytes / elapsed)
            layer_rates.append(calls / elapsed)
        # Multiply and add of gate, up and down.
        flops = 6 * spec.hidden_size * spec.intermediate_size * self._top_k * batch
        return {
            "bytes_per_s": machine.spread(byte_rates),
            "flops": machine.spread([flops * rate for rate in layer_rates]),
            "us_per_layer": machine.spread([1e6 / rate for rate in layer_rates]),
        }

    def _inputs(self, tokens: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
        hidden = _bf16(self._random.standard_normal((tokens, self._spec.hidden_size), np.float32))
        weights = np.full((tokens, self._top_k), 1 / self._top_k, np.float32)
        return hidden, np.empty_like(hidden), weights

    def _choose(self, tokens: int) -> npt.NDArray[np.int32]:
        keys = self._random.random((tokens, self._spec.num_experts))
        return np.ascontiguousarray(keys.argsort(axis=1)[:, : self._top_k], dtype=np.int32)

    def _forward(
        self,
        layer: int,
        hidden: npt.NDArray[Any],
        out: npt.NDArray[Any],
        weights: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int32],
    ) -> None:
        self._engine.forward(
            layer,
            hidden.ctypes.data,
            ids.ctypes.data,
            weights.ctypes.data,
            out.ctypes.data,
            tokens=len(ids),
            top_k=self._top_k,
            dtype="bf16",
        )


def _spec(shape: Shape, dtype: str, experts: int | None) -> LayerSpec:
    """The shape's layer with `experts` experts; None means all, or as many as MAX_LAYER_BYTES hold."""

    def of(experts: int) -> LayerSpec:
        return LayerSpec(
            layer_index=0,
            num_experts=experts,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            gated=True,
            gate_up=PANELS[dtype],
            down=PANELS[dtype],
        )

    one = of(1)
    return of(experts or min(shape.experts, MAX_LAYER_BYTES // (one.num_units * one.record_bytes)))


@contextmanager
def _layer_files(scratch: Path, spec: LayerSpec, working_set: float) -> Iterator[list[Path]]:
    """Layer files that together have `working_set` bytes, at least two of them."""
    records = _random_expert(spec)
    files = []
    try:
        for index in range(max(2, -(-int(working_set) // spec.file_bytes))):
            files.append(scratch / f"layer-{index:05d}.lsgb")
            _write_layer(files[-1], spec, records)
        yield files
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _write_layer(path: Path, spec: LayerSpec, records: npt.NDArray[np.uint8]) -> None:
    """A valid layer file whose experts all have the same weights, each in bytes of its own."""
    padding = bytes(spec.unit_bytes - spec.num_experts * spec.record_bytes)
    with path.open("wb") as file:
        file.write(spec.header())
        for record in records:
            for _ in range(spec.num_experts):
                file.write(record.data)
            file.write(padding)
        file.write(bytes(spec.table_bytes))


def _random_expert(spec: LayerSpec) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Matrix:
        weights = _bf16(random.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5))
        if spec.gate_up.dtype is Dtype.INT4:
            codes, scales, _, _ = _core.quantize_int4(weights, Dtype.BF16, search=False)
            return Matrix(codes, scales)
        return Matrix(weights)

    gate, up = (matrix(spec.intermediate_size, spec.hidden_size) for _ in range(2))
    return _core.pack_expert(spec, gate, up, matrix(spec.hidden_size, spec.intermediate_size))


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of the floats: truncated, which is near enough for a measurement of speed."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
