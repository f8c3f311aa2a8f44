"""lsg beside its peers: the same layer, as many bits a weight and the same threads, in turns.

The peers are the user's own: a checkout of llama.cpp and of ik_llama.cpp (their ggml directory is built here,
outside both trees), and an unpacked wheel of kt-kernel. A peer that is not given is said, and so is a format
that a peer cannot do here.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import machine  # noqa: E402

from lsg.runtime.bench.shapes import SHAPES, expert_bytes, layer_spec  # noqa: E402

# One for each batch: {"batch", "seconds", "low", "high", "bytes", …}.
Cells = list[dict[str, Any]]
LLAMA, IK, KT = "llama.cpp", "ik_llama.cpp", "kt-kernel"


@dataclass(frozen=True)
class Rival:
    """One format of one peer that has as many bits a weight as one of ours."""

    engine: str
    name: str
    ours: str
    repack: bool = False


RIVALS = (
    Rival(LLAMA, "q4_0", "int4", repack=True),
    Rival(LLAMA, "q4_K", "int4", repack=True),
    Rival(IK, "q4_0", "int4"),
    Rival(IK, "q4_0", "int4", repack=True),
    Rival(IK, "q4_K", "int4", repack=True),
    Rival(KT, "RAWINT4", "int4"),
    Rival(KT, "Q4_0", "int4"),
    Rival(KT, "Q4_K", "int4"),
    Rival(KT, "AMXINT4", "int4"),
    Rival(LLAMA, "q8_0", "int8", repack=True),
    Rival(IK, "q8_0", "int8"),
    Rival(IK, "q8_0", "int8", repack=True),
    Rival(KT, "Q8_0", "int8"),
    Rival(KT, "AMXINT8", "int8"),
    Rival(KT, "FP8", "fp8"),
    Rival(LLAMA, "bf16", "bf16"),
    Rival(IK, "bf16", "bf16"),
    Rival(IK, "bf16", "bf16", repack=True),
    Rival(KT, "BF16", "bf16"),
    Rival(LLAMA, "mxfp4", "mxfp4", repack=True),
    Rival(IK, "mxfp4", "mxfp4"),
    Rival(KT, "MXFP4", "mxfp4"),
)
FORMATS = tuple(dict.fromkeys(rival.ours for rival in RIVALS))
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--llama", type=_DIRECTORY, help="A checkout of llama.cpp.")
@click.option("--ik", type=_DIRECTORY, help="A checkout of ik_llama.cpp.")
@click.option("--kt", type=_DIRECTORY, help="An unpacked wheel of kt-kernel, for this Python.")
@click.option("--build", type=click.Path(path_type=Path), default=machine.ROOT / "build" / "peers")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="A", show_default=True)
@click.option("--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Only these of ours.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 512, 2048), show_default=True)
@click.option("--threads", type=int, default=lambda: len(os.sched_getaffinity(0)))
@click.option("--nodes", type=int, default=1, show_default=True, help="NUMA nodes, for kt-kernel.")
@click.option("--working-set", default=2.0, show_default=True, help="GB of layers that take turns.")
@click.option("--seconds", default=0.5, show_default=True, help="Length of a measurement.")
@click.option("--repeat", default=1, show_default=True, help="Turns; a shared machine changes its speed.")
@click.option("--load", type=click.Choice(["map", "huge"]), default="map", show_default=True)
@click.option("--save", "saved", type=click.Path(path_type=Path), help="Instead of benchmarks/results.")
def main(
    llama: Path | None,
    ik: Path | None,
    kt: Path | None,
    build: Path,
    shape: str,
    formats: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int,
    nodes: int,
    working_set: float,
    seconds: float,
    repeat: int,
    load: str,
    saved: Path | None,
) -> None:
    """Measure lsg and its peers on one shape."""
    for name, given in ((LLAMA, llama), (IK, ik), (KT, kt)):
        if given is None:
            click.echo(f"{name}: not given, so not measured", err=True)
    programs = {
        LLAMA: llama and _built(llama, build / "llama", is_ik=False),
        IK: ik and _built(ik, build / "ik", is_ik=True),
        KT: kt,
    }
    size = SHAPES[shape]
    runs: list[dict[str, Any]] = []
    for ours in formats or FORMATS:
        spec = layer_spec(size, ours)
        layers = max(2, -(-int(working_set * 1e9) // spec.file_bytes))
        geometry = [size.hidden_size, size.intermediate_size, spec.num_experts, size.top_k, layers, threads]
        bits = 8 * expert_bytes(spec) / (3 * size.hidden_size * size.intermediate_size)
        sides: list[tuple[dict[str, Any], Callable[[], Cells | None]]] = [
            (
                {"engine": "lsg", "name": ours, "format": ours, "bits": bits},
                partial(_lsg, shape, ours, batches, threads, working_set, seconds, load),
            )
        ]
        for rival in RIVALS:
            program = programs[rival.engine]
            if rival.ours == ours and program is not None:
                name = rival.name + (", repacked" if rival.repack else "")
                measure = partial(_measure, rival, program, geometry, nodes, seconds, batches)
                sides.append(({"engine": rival.engine, "name": name, "format": ours}, measure))
        turns: list[list[Cells]] = [[] for _ in sides]
        able = list(range(len(sides)))
        for turn in range(repeat):
            for i in list(able) if turn % 2 == 0 else list(reversed(able)):
                measured = sides[i][1]()
                if measured is None:
                    able.remove(i)
                else:
                    turns[i].append(measured)
        for i in able:
            runs.append(sides[i][0] | {"cells": _merged(turns[i])})
            _say(runs[-1])
    body = {"shape": shape, "model": size.model, "load": load, "runs": runs}
    facts = machine.describe(threads)
    if saved is None:
        click.echo(machine.save("peers", facts, **body).relative_to(machine.ROOT))
    else:
        saved.write_text(json.dumps({"machine": facts, **body}, indent=1) + "\n")


def _built(checkout: Path, build: Path, *, is_ik: bool) -> Path:
    """The harness against a checkout's ggml."""
    ik = "ON" if is_ik else "OFF"
    log = build.with_suffix(".log")
    build.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        for command in (
            [
                "cmake",
                "-S",
                HERE / "ggml",
                "-B",
                build,
                f"-DGGML={(checkout / 'ggml').resolve()}",
                f"-DIK={ik}",
            ],
            ["cmake", "--build", build, "--target", "moe_layers", "-j", str(os.cpu_count())],
        ):
            if subprocess.run(command, stdout=out, stderr=out, check=False).returncode != 0:
                msg = f"{checkout}: its ggml does not build; see {log}"
                raise click.ClickException(msg)
    return build / "moe_layers"


def _merged(turns: list[Cells]) -> Cells:
    """Every batch's median turn, with the lowest and highest of all."""
    merged = []
    for same in zip(*turns, strict=True):
        ordered = sorted(same, key=lambda cell: cell["seconds"])
        spread = {"low": min(cell["low"] for cell in same), "high": max(cell["high"] for cell in same)}
        merged.append(ordered[(len(ordered) - 1) // 2] | spread)
    return merged


def _lsg(
    shape: str,
    ours: str,
    batches: tuple[int, ...],
    threads: int,
    working_set: float,
    seconds: float,
    load: str,
) -> Cells:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "lsg.cli", "bench", "engine", "--shape", shape, "--format", ours]
        command += ["--threads", str(threads), "--working-set", str(working_set), "--seconds", str(seconds)]
        command += ["--load", load, "--save", file.name]
        for batch in batches:
            command += ["--batch", str(batch)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = json.loads(Path(file.name).read_text())
    return [
        {
            "batch": cell["batch"],
            "seconds": cell["seconds"]["median"],
            "low": cell["seconds"]["low"],
            "high": cell["seconds"]["high"],
            "bytes": cell["bytes_per_s"]["median"] * cell["seconds"]["median"],
            "memory_bytes_per_s": cell["memory_bytes_per_s"],
        }
        for cell in found["cells"]
    ]


def _measure(
    rival: Rival, program: Path, geometry: list[int], nodes: int, seconds: float, batches: tuple[int, ...]
) -> Cells | None:
    """The peer's cells, or None, said, when it cannot do the format here."""
    if rival.engine == KT:
        command = [sys.executable, HERE / "kt.py", program, rival.name, *geometry, nodes, seconds, *batches]
    else:
        command = [program, rival.name, int(rival.repack), *geometry, seconds, *batches]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    cells = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"batch"')]
    if run.returncode != 0 or len(cells) != len(batches):
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        click.echo(f"{rival.engine} {rival.name}: not measured (exit {run.returncode}: {last})", err=True)
        return None
    return cells


def _say(run: dict[str, Any]) -> None:
    cells = ", ".join(
        f"{cell['batch']}: {1e3 * cell['seconds']:.3g} ms ({cell['bytes'] / cell['seconds'] / 1e9:.1f} GB/s)"
        for cell in run["cells"]
    )
    click.echo(f"{run['engine']:13} {run['name']:16} {cells}")


if __name__ == "__main__":
    main()
