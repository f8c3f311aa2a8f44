"""lsg beside its peers: the same layer, as many bits a weight and the same threads, in turns.

A shared machine changes its speed within seconds, so turns are short, and a peer's ratio to lsg is the median
of what each round of turns gives.

The peers are the user's own: a checkout of llama.cpp and of ik_llama.cpp (their ggml directory is built here,
outside both trees), and an unpacked wheel of kt-kernel. A peer that is not given is said, and so is a format
that a peer cannot do here.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import machine  # noqa: E402
from side import Cell, Side, UnableError  # noqa: E402

from lsg.runtime.bench.shapes import SHAPES, expert_bytes, layer_spec  # noqa: E402

LLAMA, IK, KT = "llama.cpp", "ik_llama.cpp", "kt-kernel"


@dataclass(frozen=True)
class Rival:
    """One format of one peer that has as many bits a weight as one of ours."""

    engine: str
    name: str
    ours: str
    repack: bool = False

    @property
    def title(self) -> str:
        """As tables call it."""
        return self.name + (", repacked" if self.repack else "")

    def command(
        self, program: Path, geometry: list[int], threads: int, nodes: int, seconds: float
    ) -> list[object]:
        """What side.py starts."""
        if self.engine == KT:
            return [sys.executable, HERE / "kt.py", program, self.name, *geometry, threads, nodes, seconds]
        return [program, self.name, int(self.repack), *geometry, threads, seconds]


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
# Up to here kt-kernel gets a thread less than there are CPUs: with all of them its times are multiples of a
# scheduler tick.
FEW_TOKENS = 4
FORMATS = tuple(dict.fromkeys(rival.ours for rival in RIVALS))
CPUS = len(os.sched_getaffinity(0))
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--llama", type=_DIRECTORY, help="A checkout of llama.cpp.")
@click.option("--ik", type=_DIRECTORY, help="A checkout of ik_llama.cpp.")
@click.option("--kt", type=_DIRECTORY, help="An unpacked wheel of kt-kernel, for this Python.")
@click.option("--build", type=click.Path(path_type=Path), default=machine.ROOT / "build" / "peers")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="A", show_default=True)
@click.option("--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Only these of ours.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 512, 2048), show_default=True)
@click.option("--threads", type=int, default=CPUS)
@click.option("--nodes", type=int, default=1, show_default=True, help="NUMA nodes, for kt-kernel.")
@click.option("--working-set", default=1.0, show_default=True, help="GB of each one's layers.")
@click.option("--seconds", default=0.1, show_default=True, help="Length of a turn.")
@click.option("--turns", default=7, show_default=True, help="Turns of each, at least one.")
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
    turns: int,
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
        geometry = [size.hidden_size, size.intermediate_size, spec.num_experts, size.top_k, layers]
        cells: dict[Rival | None, list[Cell]] = {}
        few = [batch for batch in batches if batch <= FEW_TOKENS]
        many = [batch for batch in batches if batch > FEW_TOKENS]
        for group, of_kt in ((few, max(1, min(threads, CPUS - 1))), (many, threads)):
            if not group:
                continue
            commands: dict[Rival | None, list[object]] = {
                None: [sys.executable, HERE / "ours.py", shape, ours, threads, working_set, load, seconds]
            }
            for rival in RIVALS:
                program = programs[rival.engine]
                if rival.ours == ours and program is not None:
                    used = of_kt if rival.engine == KT else threads
                    commands[rival] = rival.command(program, geometry, used, nodes, seconds)
            for who, measured in _in_turns(commands, group, turns).items():
                used = of_kt if who is not None and who.engine == KT else threads
                cells.setdefault(who, []).extend(cell | {"threads": used} for cell in measured)
        for who, measured in cells.items():
            if len(measured) == len(batches):
                engine, name = ("lsg", ours) if who is None else (who.engine, who.title)
                runs.append({"engine": engine, "name": name, "format": ours, "cells": measured})
                if who is None:
                    runs[-1]["bits"] = (
                        8 * expert_bytes(spec) / (3 * size.hidden_size * size.intermediate_size)
                    )
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


def _in_turns(
    commands: dict[Rival | None, list[object]], batches: list[int], turns: int
) -> dict[Rival | None, list[Cell]]:
    """Everybody's cells, for those who can, said of those who cannot; the ratio is to the one called None."""
    with ExitStack() as stack:
        sides: dict[Rival | None, Side] = {}
        for who, command in commands.items():
            side = stack.enter_context(closing(Side(command)))
            try:
                side.measure(batches[0])
            except UnableError as error:
                if who is None:
                    raise click.ClickException(str(error)) from None
                click.echo(f"{who.engine} {who.name}: not measured ({error})", err=True)
            else:
                sides[who] = side
        cells: dict[Rival | None, list[Cell]] = {who: [] for who in sides}
        for batch in batches:
            measured: dict[Rival | None, list[Cell]] = {who: [] for who in sides}
            for turn in range(turns):
                for who in list(sides) if turn % 2 == 0 else reversed(list(sides)):
                    measured[who].append(sides[who].measure(batch))
            for who, own in measured.items():
                cells[who].append(_merged(own, measured[None]))
        return cells


def _merged(turns: list[Cell], ours: list[Cell]) -> Cell:
    """The median turn, with the lowest and highest time of all, and the median ratio to ours."""
    merged = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    ratios = [turn["seconds"] / our["seconds"] for turn, our in zip(turns, ours, strict=True)]
    return merged | {
        "batch": turns[0]["batch"],
        "low": min(turn["low"] for turn in turns),
        "high": max(turn["high"] for turn in turns),
        "ratio": statistics.median(ratios),
    }


def _say(run: dict[str, Any]) -> None:
    cells = ", ".join(
        f"{cell['batch']}: {1e3 * cell['seconds']:.3g} ms ({cell['bytes'] / cell['seconds'] / 1e9:.1f} GB/s)"
        for cell in run["cells"]
    )
    click.echo(f"{run['engine']:13} {run['name']:16} {cells}")


if __name__ == "__main__":
    main()
