"""How fast experts come into memory, beside the rate of this machine's disk, and how fast they then decode.

Loads of both modes take turns with plain O_DIRECT reads of the same files, because disks of shared machines
change by the minute. Cold means that the files' pages were dropped before, as far as this machine goes: what
a hypervisor caches makes everybody's disk faster, so only the ratios count. A hypervisor may also take free
memory away and look for some when a page is first written. A cold load therefore gets memory that was in use
a moment before, as on hardware, and is over before that is taken away; a load into such new memory is a case
of its own, with a limit of its own.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np
from load_limits import NEW_MEMORY_S, disk_seconds, drop, new_memory_rate, write_memory

from lsg._core import Engine, LayerFile, LayerSpec, ReadProbe
from lsg.runtime.bench.shapes import SHAPES, layer_spec
from lsg.runtime.bench.synthetic import LayerWriter
from lsg.runtime.load_plan import found

SHAPE = SHAPES["A"]


@click.command()
@machine.scratch_option("Where the layer files go: on the disk that is to be measured.")
@click.option("--gb", default=8.0, show_default=True, help="GB of layer files in the page cache.")
@click.option("--cold-gb", default=2.4, show_default=True, help="GB of them that are loaded cold.")
@click.option("--repeat", default=3, show_default=True, help="Repetitions.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of a decode measurement.")
@click.option("--save/--no-save", default=True, show_default=True, help="Write benchmarks/results.")
def main(scratch: Path, gb: float, cold_gb: float, repeat: int, seconds: float, save: bool) -> None:
    """Measure loads, cold and warm, in both modes."""
    facts = machine.describe(os.cpu_count() or 1)
    spec = layer_spec(SHAPE, "int4")
    scratch.mkdir(parents=True, exist_ok=True)
    with layer_files(scratch, spec, gb * 1e9) as files:
        few = files[: max(1, int(cold_gb * 1e9) // spec.file_bytes)]
        total, cold = (sum(file.stat().st_size for file in some) for some in (files, few))
        disk, new, memory = [], [], []
        cases = {name: Case(few if how["cold"] else files, seconds, **how) for name, how in CASES.items()}
        for _ in range(repeat):
            for case in cases.values():
                if case.cold:
                    disk.append(cold / disk_seconds(few))
                if case.new_memory:
                    new.append(new_memory_rate(cold))
                case.run()
            memory.append(ReadProbe(facts["threads"]).measure(seconds))
    limits = {
        "disk": machine.spread(disk),
        "new memory": machine.spread(new),
        "memory read": machine.spread(memory),
    }
    runs = {name: case.result() for name, case in cases.items()}
    for name, run in runs.items():
        click.echo(
            f"{name}: {run['seconds']['median']:.3f} s, {run['bytes_per_s']['median'] / 1e9:.2f} GB/s, "
            f"{run['peak_share']:.3f} x memory, {100 * run['huge_share']:.0f} % in 2 MiB pages, "
            f"decode {run['decode_bytes_per_s']['median'] / 1e9:.1f} GB/s"
        )
    click.echo(", ".join(f"{name} {limit['median'] / 1e9:.2f} GB/s" for name, limit in limits.items()))
    if save:
        shape = {
            "model": SHAPE.model,
            "format": "int4",
            "layers": len(files),
            "bytes": total,
            "cold_bytes": cold,
        }
        path = machine.save("load", facts, shape=shape, limits_bytes_per_s=limits, runs=runs)
        click.echo(path.relative_to(machine.ROOT))


# new_memory: it was free for longer than a hypervisor waits. small: the page cache holds the files in 4 KiB
# pages, as on file systems without larger ones.
CASES: dict[str, dict[str, Any]] = {
    "map, cold": {"mode": "map", "cold": True},
    "huge, cold": {"mode": "huge", "cold": True},
    "map, cold, into new memory": {"mode": "map", "cold": True, "new_memory": True},
    "huge, cold, into new memory": {"mode": "huge", "cold": True, "new_memory": True},
    "map, files in the page cache": {"mode": "map", "cold": False},
    "map, files in the page cache in 4 KiB pages": {"mode": "map", "cold": False, "small": True},
    "huge, files in the page cache": {"mode": "huge", "cold": False},
}


class Case:
    """One way to load the files, repeated."""

    def __init__(
        self,
        files: list[Path],
        seconds: float,
        *,
        mode: str,
        cold: bool,
        new_memory: bool = False,
        small: bool = False,
    ) -> None:
        self.cold, self.new_memory = cold, new_memory
        self._files = [LayerFile(str(file)) for file in files]
        self._paths, self._mode, self._small, self._decode_seconds = files, mode, small, seconds
        self._seconds: list[float] = []
        self._decode: list[float] = []
        self._peak = 0
        self._huge = 0.0

    def run(self) -> None:
        """Prepare the page cache, load, look, decode."""
        engine = Engine(threads=os.cpu_count() or 1)
        handles = [engine.add_layer(str(path), load=self._mode, defer=True) for path in self._paths]
        before = anonymous_bytes()
        if self.cold or self._small:
            drop(self._paths)
        if self.new_memory:
            time.sleep(NEW_MEMORY_S)
        elif self.cold:
            # Twice, because the kernel need not give back just what was freed last.
            write_memory(2 * sum(path.stat().st_size for path in self._paths))
        elif self._small:
            cache_in_small_pages(self._paths)
        else:
            cache(self._paths)
        polls = count()

        def look(_: list[tuple[int, int, int]]) -> None:
            # Counting cached pages takes the time of some hundred loaded megabytes.
            if next(polls) % 8 == 4:
                self._peak = max(self._peak, anonymous_bytes() - before + self._cached_bytes())

        began = time.perf_counter()
        engine.load(look)
        self._seconds.append(time.perf_counter() - began)
        self._peak = max(self._peak, anonymous_bytes() - before + self._cached_bytes())
        nodes = found(engine.residency())
        self._huge = sum(node.huge_bytes for node in nodes) / sum(node.bytes for node in nodes)
        self._decode.append(decode_rate(engine, handles, self._files[0].spec, self._decode_seconds))

    def result(self) -> dict[str, Any]:
        """peak_share: anonymous memory and cached pages of the files together, of the files' size."""
        total = sum(file.spec.file_bytes for file in self._files)
        return {
            "seconds": machine.spread(self._seconds),
            "bytes_per_s": machine.spread([total / each for each in self._seconds]),
            "peak_share": self._peak / total,
            "huge_share": self._huge,
            "decode_bytes_per_s": machine.spread(self._decode),
        }

    def _cached_bytes(self) -> int:
        return sum(file.cached_bytes() for file in self._files)


@contextmanager
def layer_files(scratch: Path, spec: LayerSpec, nbytes: float) -> Iterator[list[Path]]:
    """Layer files of `nbytes` in all."""
    writer = LayerWriter(spec, os.cpu_count() or 1)
    files = [scratch / f"layer-{index:05d}.lsgb" for index in range(max(2, int(nbytes) // spec.file_bytes))]
    try:
        for file in files:
            with writer.written(scratch / "layer.tmp") as path:
                # The writer takes its file away again.
                os.link(path, file)
        yield files
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def cache(files: list[Path]) -> None:
    """Bring the files into the page cache as a server that maps them does."""
    engine = Engine(threads=1)
    for file in files:
        engine.add_layer(str(file), load="map", defer=True)
    engine.load()


def cache_in_small_pages(files: list[Path]) -> None:
    """Bring the files into the page cache page by page."""
    for file in files:
        with file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            while opened.read(1 << 20):
                pass


def decode_rate(engine: Engine, handles: list[int], spec: LayerSpec, seconds: float) -> float:
    """Expert bytes a second, one token at a time through the layers in turn."""
    random = np.random.default_rng(0)
    hidden = np.full((1, spec.hidden_size), 0x3F80, np.uint16)
    out, weights = np.empty_like(hidden), np.full((1, SHAPE.top_k), 1 / SHAPE.top_k, np.float32)
    # A guest's page costs most when its first byte is touched.
    every = np.resize(
        np.arange(spec.num_experts, dtype=np.int32), (-(-spec.num_experts // SHAPE.top_k), SHAPE.top_k)
    )
    all_hidden, all_weights = np.repeat(hidden, len(every), 0), np.repeat(weights, len(every), 0)
    all_out = np.empty_like(all_hidden)
    for handle in handles:
        engine.forward(
            handle,
            *(array.ctypes.data for array in (all_hidden, every, all_weights, all_out)),
            tokens=len(every),
            top_k=SHAPE.top_k,
            dtype="bf16",
        )
    choices = [random.permutation(spec.num_experts)[: SHAPE.top_k].astype(np.int32)[None] for _ in range(64)]
    calls = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        ids = choices[calls % len(choices)]
        engine.forward(
            handles[calls % len(handles)],
            *(array.ctypes.data for array in (hidden, ids, weights, out)),
            tokens=1,
            top_k=SHAPE.top_k,
            dtype="bf16",
        )
        calls += 1
    return calls * SHAPE.top_k * spec.num_units * spec.record_bytes / elapsed


def anonymous_bytes() -> int:
    """Memory of this process that is no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
