"""`lsg bench engine`: whole MoE layers with cold weights, beside the machine's limits.

Invariant: the table goes to stdout, everything else to stderr; every failure is one sentence, exit code 1.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from lsg import CompatError, LsgError
from lsg.runtime import console, host, placement, settings
from lsg.runtime.bench import report, roofline
from lsg.runtime.bench.shapes import BATCHES, FORMATS, MAX_LAYER_BYTES, SHAPES
from lsg.runtime.bench.sweep import Group, Options, sweep

_NAME = "lsg bench engine"
_SHARED_MEMORY = Path("/dev/shm")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("engine")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="Only these shapes.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(list(FORMATS)), help="Only these formats."
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    help=f"Only these numbers of tokens; by default {', '.join(map(str, BATCHES))}.",
)
@click.option("--threads", type=click.IntRange(min=1), help="By default as many as usable cores.")
@click.option(
    "--isa", type=click.Choice(settings.ISAS[1:]), help="A lower instruction-set level than the best."
)
@click.option(
    "--activations",
    type=click.Choice(settings.ACTIVATIONS),
    default="int8",
    show_default=True,
    help="Experts' inputs: rounded to int8 or bf16, or floats.",
)
@click.option(
    "--load",
    type=click.Choice(["map", "huge"]),
    default="map",
    show_default=True,
    help="Hold experts in the file's own pages or in 2 MiB pages.",
)
@click.option(
    "--experts", type=click.IntRange(min=1), help="Experts of a layer; by default the model's, in 2.5 GB."
)
@click.option("--working-set", default=2.0, show_default=True, help="GB of layers that take turns.")
@click.option("--seconds", default=0.5, show_default=True, help="Length of a measurement.")
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where layer files are for a moment; by default shared memory, or the temporary directory.",
)
@click.option("--save", "saved", type=_FILE, metavar="FILE.json", help="Also write all of it as JSON.")
@click.option("--plot", type=_FILE, metavar="FILE.png", help="Also draw the roofline (needs matplotlib).")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
def engine_command(
    shapes: tuple[str, ...],
    formats: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int | None,
    isa: str | None,
    activations: str,
    load: str,
    experts: int | None,
    working_set: float,
    seconds: float,
    scratch: Path | None,
    saved: Path | None,
    plot: Path | None,
    verbose: bool,
) -> None:
    """Measure MoE layers of random experts and compare them with this machine's memory and arithmetic."""
    try:
        here = host.observe()
        options = Options(
            shapes=shapes or tuple(SHAPES),
            formats=formats or tuple(FORMATS),
            batches=batches or BATCHES,
            placement=placement.plan(here, threads=threads or here.usable_cores),
            isa=isa or _isa(os.environ),
            activations=activations,
            load=load,
            num_experts=experts,
            working_set=working_set * 1e9,
            seconds=seconds,
            scratch=scratch or _scratch(len(here.topology.nodes)),
        )
        groups = []
        for group in sweep(options):
            groups.append(group)
            _say(group)
        result = report.as_json(options, groups)
        if saved is not None:
            saved.write_text(json.dumps(result, indent=1) + "\n")
        if plot is not None:
            roofline.save(result, plot)
    except (LsgError, OSError) as error:
        console.error(error, with_traceback=verbose, command=_NAME)
        raise SystemExit(1) from None
    console.table(report.HEAD, report.rows(result["cells"]))
    console.table(*report.summary(result["cells"]))


def _isa(environ: Mapping[str, str]) -> str:
    isa = settings.read(environ).isa
    if isa == settings.ISAS[0]:
        msg = f"LSG_ISA={isa}: has no arithmetic limit to compare with; choose {', '.join(settings.ISAS[1:])}"
        raise CompatError(msg)
    return isa


def _scratch(nodes: int) -> Path:
    """Shared memory has no disk to wait for, but on several nodes its pages lie where they were written."""
    needed = 2 * MAX_LAYER_BYTES
    if nodes == 1 and _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > needed:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _say(group: Group) -> None:
    first, memory = group.cells[0], group.limits.bytes_per_s
    cells = ", ".join(f"{cell.batch}: {1e3 * cell.seconds.median:.3g} ms" for cell in group.cells)
    console.note(
        f"{first.shape} {first.format}: {group.written_bytes / 1e9:.1f} GB ready in "
        f"{group.writing_seconds:.1f} s; memory {memory / 1e9:.1f} GB/s; {cells}",
        command=_NAME,
    )
