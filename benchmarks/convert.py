"""How fast lsg-convert repacks, beside what this machine's memory and disk allow.

Rates are bytes of the checkpoint per second of the whole command, its start included; what the start alone
takes is beside them. The checkpoint is in the page cache. The output goes to the scratch directory's disk
and, where there is room, into memory (tmpfs), which shows what the disk holds back. The limits are measured
in the same run.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import machine
import numpy as np
import peer_kt
import process

import checkpoints
from lsg._core import Instruction, arithmetic_peak
from lsg.convert.direct import PreallocatedFile, page_aligned

CHUNK = 8 << 20
MEMORY = Path("/dev/shm")
# As a module: this Python may have lsg without its scripts.
PROGRAM = (sys.executable, "-m", "lsg.convert.cli")
RATES = ("one_thread_bytes_per_s", "bytes_per_s", "memory_one_thread_bytes_per_s", "memory_bytes_per_s")
# What is converted, and how.
RUNS = {
    "bf16 → int4": ("bf16", ["--experts", "int4"]),
    "bf16 → int4 without search": ("bf16", ["--experts", "int4", "--no-search"]),
    "bf16 → bf16 (lossless)": ("bf16", ["--experts", "bf16"]),
    "fp8 → int4": ("fp8", ["--experts", "int4"]),
}


@click.command()
@machine.scratch_option("Where the checkpoint and the outputs go.")
@click.option("--layers", default=2, show_default=True, help="Layers of the checkpoint, 1.2 GB each.")
@click.option("--experts", default=128, show_default=True, help="Experts of a layer (Qwen3-30B-A3B: 128).")
@click.option("--hidden", default=2048, show_default=True, help="Hidden size.")
@click.option("--intermediate", default=768, show_default=True, help="Intermediate size of an expert.")
@click.option("--repeat", default=3, show_default=True, help="Runs of each kind.")
@click.option(
    "--threads", default=len(os.sched_getaffinity(0)), show_default="all CPUs", help="Threads of lsg-convert."
)
@click.option(
    "--llama-quantize",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="llama.cpp's program, to be measured beside ours.",
)
@click.option(
    "--kt-convert",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkout of ktransformers, whose converter is to be measured beside ours; needs AVX-512.",
)
@click.option(
    "--kt-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path(sys.executable),
    help="The Python that has kt-kernel, by default this one.",
)
@click.option("--save/--no-save", default=True, show_default=True, help="Write benchmarks/results.")
@click.option(
    "--copy", type=click.Path(path_type=Path), help="Also put the saved result into this directory."
)
def main(
    scratch: Path,
    layers: int,
    experts: int,
    hidden: int,
    intermediate: int,
    repeat: int,
    threads: int,
    llama_quantize: Path | None,
    kt_convert: Path | None,
    kt_python: Path,
    save: bool,
    copy: Path | None,
) -> None:
    """Measure lsg-convert on a synthetic Qwen3-MoE checkpoint."""
    scratch.mkdir(parents=True, exist_ok=True)
    shape = {"layers": layers, "experts": experts, "hidden": hidden, "intermediate": intermediate}
    source = checkpoints.bf16(scratch, shape)
    sources = {"bf16": source, "fp8": checkpoints.fp8(source)}
    shards = {name: sorted(path.glob("*.safetensors")) for name, path in sources.items()}
    nbytes = {name: sum(shard.stat().st_size for shard in files) for name, files in shards.items()}
    click.echo(f"checkpoint {nbytes['bf16'] / 1e9:.2f} GB, {threads} threads, median of {repeat}")

    limits = {"page cache read": [_read_rate(shards["bf16"], threads) for _ in range(repeat)]}
    start = machine.spread([_start_seconds() for _ in range(repeat)])
    runs: dict[str, dict[str, Any]] = {}
    for name, (kind, options) in RUNS.items():
        places = {"": scratch} | ({"memory_": MEMORY} if _has_room(nbytes[kind]) else {})
        runs[name] = {}
        for place, directory in places.items():
            for label, count in {"one_thread_": 1, "": threads}.items():
                measured = []
                for _ in range(repeat):
                    _read_rate(shards[kind], threads)  # fills the page cache
                    measured.append(_convert(sources[kind], directory, options, count))
                found = _row(nbytes[kind], measured)
                runs[name][f"{place}{label}bytes_per_s"] = found["bytes_per_s"]
                if not place:
                    runs[name] |= found
        _say(name, runs[name])
    peers: dict[str, Callable[[], dict[str, Any]]] = {}
    if llama_quantize is not None:
        peers["llama-quantize, bf16 → Q4_0"] = lambda: _llama(llama_quantize, scratch, shape, threads, repeat)
    if kt_convert is not None:
        peers["kt-kernel, bf16 → int4"] = lambda: _kt(
            kt_python, kt_convert, source, nbytes["bf16"], threads, repeat
        )
    failed = False
    for name, measure in peers.items():
        try:
            runs[name] = measure()
        except RuntimeError as error:
            # The other rows are worth keeping; the exit code tells.
            click.echo(f"{name}: {error}", err=True)
            failed = True
        else:
            _say(name, runs[name])
    # Only now: a child's peak memory starts at its parent's, and this takes a lot.
    limits["memcpy"] = [_memcpy_rate(threads) for _ in range(repeat)]
    limits["disk write"] = [_write_rate(scratch, nbytes["bf16"] // 2) for _ in range(repeat)]
    if _has_room(nbytes["bf16"]):
        limits["memory (tmpfs) write"] = [_write_rate(MEMORY, nbytes["bf16"] // 2) for _ in range(repeat)]
    scaling = machine.spread([_scaling(threads) for _ in range(repeat)])
    for name, rates in limits.items():
        click.echo(f"{name:22} {machine.spread(rates)['median'] / 1e9:6.2f} GB/s")
    if save:
        path = machine.save(
            "convert",
            machine.describe(threads),
            shape=shape,
            source_bytes=nbytes["bf16"],
            start_seconds=start,
            arithmetic_of_threads=scaling,
            limits_bytes_per_s={name: machine.spread(rates) for name, rates in limits.items()},
            runs=runs,
        )
        click.echo(path.relative_to(machine.ROOT))
        if copy is not None:
            shutil.copy(path, copy)
    if failed:
        sys.exit(1)


class Measured(NamedTuple):
    """One conversion, and the bytes it wrote."""

    used: process.Used
    written: int


def _row(source_bytes: int, measured: list[Measured]) -> dict[str, Any]:
    """A row of the table."""
    return {
        "bytes_per_s": machine.spread([source_bytes / run.used.seconds for run in measured]),
        "seconds": machine.spread([run.used.seconds for run in measured]),
        "cpu_seconds_per_gb": machine.spread([run.used.cpu_seconds / source_bytes * 1e9 for run in measured]),
        "peak_rss_bytes": max(run.used.peak_rss_bytes for run in measured),
        "output_bytes": measured[0].written,
    }


def _say(name: str, run: dict[str, Any]) -> None:
    rates = [f"{run[key]['median'] / 1e9:6.2f}" for key in RATES if key in run]
    cpu = run["cpu_seconds_per_gb"]["median"]
    click.echo(f"{name:28} {' '.join(rates)} GB/s, {cpu:.2f} s/GB, {run['peak_rss_bytes'] / 2**20:.0f} MiB")


def _has_room(nbytes: int) -> bool:
    """Whether a lossless output of this size fits into memory beside the checkpoint in the page cache."""
    # The page cache gives way, but must keep the checkpoint.
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(words["MemAvailable"].split()[0]) << 10
    return MEMORY.is_dir() and min(available - nbytes, shutil.disk_usage(MEMORY).free) > 2 * nbytes


def _llama(program: Path, scratch: Path, shape: dict[str, int], threads: int, repeat: int) -> dict[str, Any]:
    """llama-quantize's rate on experts of this shape."""
    # Imported here: it needs the package gguf, and the other measurements do not.
    import peer_llama

    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        source, out = Path(directory) / "experts.gguf", Path(directory) / "experts-q4_0.gguf"
        source_bytes = peer_llama.write_gguf(source, **shape)
        measured = []
        for _ in range(repeat):
            used = peer_llama.quantize(program, source, out, threads)
            measured.append(Measured(used, out.stat().st_size))
            out.unlink()
    return _row(source_bytes, measured)


def _kt(
    python: Path, checkout: Path, checkpoint: Path, source_bytes: int, threads: int, repeat: int
) -> dict[str, Any]:
    """kt-kernel's rate on the checkpoint; importing torch takes it long, so that is told apart."""
    start = [peer_kt.start(python, checkout) for _ in range(repeat)]
    measured = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as out:
            used = peer_kt.convert(python, checkout, checkpoint, Path(out), threads)
            measured.append(Measured(used, _bytes_in(Path(out))))
    return _row(source_bytes, measured) | {"start_seconds": machine.spread(start)}


def _start_seconds() -> float:
    """Seconds until the command can do something: it reads its options and loads what it needs."""
    return process.run([*PROGRAM, "--help"]).seconds


def _convert(checkpoint: Path, directory: Path, options: list[str], threads: int) -> Measured:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        out = Path(scratch) / "out"
        used = process.run([*PROGRAM, checkpoint, out, *options, "--threads", str(threads)])
        return Measured(used, _bytes_in(out))


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _read_rate(shards: list[Path], threads: int) -> float:
    """Bytes/s of copying the shards out of the page cache, as the converter does."""

    def read(chunks: list[tuple[int, int]], buffer: bytearray) -> int:
        return sum(os.preadv(fd, [buffer], offset) for fd, offset in chunks)

    files = [os.open(shard, os.O_RDONLY) for shard in shards]
    try:
        chunks = [(fd, offset) for fd in files for offset in range(0, os.fstat(fd).st_size, CHUNK)]
        shares = [chunks[first::threads] for first in range(threads)]
        buffers = [bytearray(CHUNK) for _ in shares]
        with ThreadPoolExecutor(threads) as pool:
            sum(pool.map(read, shares, buffers))  # a first pass fills the cache
            began = time.perf_counter()
            total = sum(pool.map(read, shares, buffers))
            return total / (time.perf_counter() - began)
    finally:
        for fd in files:
            os.close(fd)


def _scaling(threads: int) -> float:
    """How much more arithmetic the threads do than one: less than their number where they share cores."""
    one, all_ = (arithmetic_peak(Instruction.FMA_YMM, count) for count in (1, threads))
    return all_ / one


def _memcpy_rate(threads: int) -> float:
    """Bytes/s copied from memory to memory."""
    size = 256 << 20
    # Both sides are written first, so that the copy meets no page fault.
    pairs = [(np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
        return threads * size / (time.perf_counter() - began)


def _write_rate(scratch: Path, size: int) -> float:
    """Bytes/s of two threads writing past the page cache, up to and with the sync."""
    path = scratch / "write-test"
    chunk = page_aligned(CHUNK)
    # Random bytes: some disks are faster with zeros than they will ever be with weights.
    chunk[:] = np.frombuffer(os.urandom(CHUNK), np.uint8)
    size = max(1, size // CHUNK) * CHUNK
    try:
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            file = PreallocatedFile(path, size, stack)
            began = time.perf_counter()
            list(pool.map(lambda offset: file.write(chunk[None], offset), range(0, size, CHUNK)))
            file.sync()
            return size / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
