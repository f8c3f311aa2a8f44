"""How fast lsg-convert repacks, beside what this machine's memory and disk allow.

Rates are bytes of the BF16 checkpoint per second of the whole command, its start included. The checkpoint is
in the page cache, the output goes to the scratch directory's disk; the limits are measured in the same run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import machine
import numpy as np
import peer_llama

CHUNK = 8 << 20
RUNS = {
    "int4": ["--experts", "int4"],
    "int4 without search": ["--experts", "int4", "--no-search"],
    "bf16 (lossless)": ["--experts", "bf16"],
}


@click.command()
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    default=machine.ROOT / "build" / "bench",
    show_default="build/bench",
    help="Where the checkpoint and the outputs go.",
)
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
@click.option("--save/--no-save", default=True, show_default=True, help="Write benchmarks/results.")
def main(
    scratch: Path,
    layers: int,
    experts: int,
    hidden: int,
    intermediate: int,
    repeat: int,
    threads: int,
    llama_quantize: Path | None,
    save: bool,
) -> None:
    """Measure lsg-convert on a synthetic Qwen3-MoE checkpoint."""
    scratch.mkdir(parents=True, exist_ok=True)
    shape = {"layers": layers, "experts": experts, "hidden": hidden, "intermediate": intermediate}
    checkpoint = _checkpoint(scratch, shape)
    shards = sorted(checkpoint.glob("*.safetensors"))
    source_bytes = sum(shard.stat().st_size for shard in shards)
    click.echo(f"checkpoint {source_bytes / 1e9:.2f} GB, {threads} threads, median of {repeat}")

    limits = {"page cache read": [_read_rate(shards, threads) for _ in range(repeat)]}
    runs = {}
    for name, options in RUNS.items():
        measured = [_convert(checkpoint, scratch / "out", options, threads) for _ in range(repeat)]
        runs[name] = {
            "bytes_per_s": machine.spread([source_bytes / seconds for seconds, _, _ in measured]),
            "seconds": machine.spread([seconds for seconds, _, _ in measured]),
            "peak_rss_bytes": max(rss for _, rss, _ in measured),
            "output_bytes": measured[0][2],
        }
        rate = runs[name]["bytes_per_s"]["median"]
        click.echo(f"{name:22} {rate / 1e9:6.2f} GB/s, {runs[name]['peak_rss_bytes'] / 2**20:.0f} MiB")
    if llama_quantize is not None:
        name = "llama-quantize Q4_0"
        runs[name] = _peer(llama_quantize, scratch, shape, threads, repeat)
        click.echo(f"{name:22} {runs[name]['bytes_per_s']['median'] / 1e9:6.2f} GB/s")
    # Only now: a child's peak memory starts at its parent's, and this takes a lot.
    limits["memcpy"] = [_memcpy_rate(threads) for _ in range(repeat)]
    limits["disk write"] = [_write_rate(scratch, source_bytes // 2) for _ in range(repeat)]
    for name, rates in limits.items():
        click.echo(f"{name:22} {machine.spread(rates)['median'] / 1e9:6.2f} GB/s")
    if save:
        path = machine.save(
            "convert",
            machine.describe(threads),
            shape=shape,
            source_bytes=source_bytes,
            limits_bytes_per_s={name: machine.spread(rates) for name, rates in limits.items()},
            runs=runs,
        )
        click.echo(path.relative_to(machine.ROOT))


def _peer(program: Path, scratch: Path, shape: dict[str, int], threads: int, repeat: int) -> dict[str, Any]:
    """llama-quantize's rate on experts of this shape."""
    source = scratch / "experts.gguf"
    try:
        source_bytes = peer_llama.write_gguf(source, **shape)
        measured = [
            peer_llama.quantize(program, source, scratch / "experts-q4_0.gguf", threads)
            for _ in range(repeat)
        ]
    finally:
        source.unlink(missing_ok=True)
    return {
        "bytes_per_s": machine.spread([source_bytes / seconds for seconds, _, _ in measured]),
        "seconds": machine.spread([seconds for seconds, _, _ in measured]),
        "peak_rss_bytes": max(rss for _, rss, _ in measured),
        "output_bytes": measured[0][2],
    }


def _checkpoint(scratch: Path, shape: dict[str, int]) -> Path:
    """Make the checkpoint, or take the one an earlier run has left."""
    path = scratch / ("checkpoint-" + "-".join(str(size) for size in shape.values()))
    # The generator writes this file last.
    if not (path / "generation_config.json").exists():
        options = [f"--{name}={size}" for name, size in shape.items()]
        generator = machine.ROOT / "tests" / "checkpoints"
        subprocess.run([sys.executable, generator, path, "--top-k=8", "--shards=4", *options], check=True)
    return path


def _convert(checkpoint: Path, out: Path, options: list[str], threads: int) -> tuple[float, int, int]:
    """Seconds, peak resident bytes of the process, and bytes written, of one run."""
    program = Path(sys.executable).parent / "lsg-convert"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        [program, checkpoint, out, *options, "--threads", str(threads)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        msg = f"lsg-convert {' '.join(options)} failed with exit code {process.returncode}"
        raise click.ClickException(msg)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return seconds, usage.ru_maxrss * 1024, written


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


def _memcpy_rate(threads: int) -> float:
    """Bytes/s copied from memory to memory."""
    size = 256 << 20
    # Both sides are written first, so that the copy meets no page fault.
    pairs = [(np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
        return threads * size / (time.perf_counter() - began)


@contextmanager
def _temporary(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


def _write_rate(scratch: Path, size: int) -> float:
    """Bytes/s of a sequential write, up to and with fsync."""
    # Random bytes: some disks are faster with zeros than they will ever be with weights.
    buffer = os.urandom(CHUNK)
    with _temporary(scratch / "write-test") as fd:
        began = time.perf_counter()
        total = sum(os.write(fd, buffer) for _ in range(max(1, size // CHUNK)))
        os.fsync(fd)
        return total / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
