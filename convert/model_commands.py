"""The commands `lsg inspect` and `lsg verify`.

Invariant: only words and exit codes here; every failure is one sentence on standard error, exit code 1.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from lsg import LsgError
from lsg.convert import console
from lsg.convert.cli import fail
from lsg.convert.inspect import inspect, lines, save_plot
from lsg.convert.options import json_option, threads_option, verbose_option
from lsg.convert.verify import verify

_MODEL = click.Path(exists=True, file_okay=False, path_type=Path)


@contextmanager
def _sentences(command: str, *, verbose: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted", 130, command=command)
    except (LsgError, OSError) as error:
        fail(error, 1, command=command, verbose=verbose)


@click.command("verify")
@click.argument("model", metavar="DIR", type=_MODEL)
@click.option(
    "--against",
    metavar="CHECKPOINT",
    type=_MODEL,
    help="Also compare every weight with this checkpoint: exactly where nothing was lost, else by its error.",
)
@threads_option("Experts read at the same time.")
@json_option("Print progress and the result as JSON lines.")
@verbose_option
def verify_command(model: Path, against: Path | None, threads: int, as_json: bool, verbose: bool) -> None:
    """Read all of DIR's experts and compare them with the checksums of its manifest."""
    progress = console.make_progress(as_json=as_json)
    with _sentences("lsg verify", verbose=verbose):
        try:
            found = verify(model, against, threads, progress)
        finally:
            progress.close()
    if as_json:
        console.write_json(sys.stdout, "summary", asdict(found))
        return
    rate = found.nbytes / max(found.seconds, 1e-9) / 1e9
    compared = f"; every weight agrees with {against}" if found.compared else ""
    click.echo(
        f"{model}: {found.slabs} experts in {found.layers} layers ({console.size_text(found.nbytes)}) "
        f"are what the manifest says, read at {rate:.2f} GB/s{compared}"
    )


@click.command("inspect")
@click.argument("model", metavar="DIR", type=_MODEL)
@json_option("Print all of it as one JSON object.")
@click.option(
    "--plot",
    metavar="FILE.png",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw the error of each layer into this file (needs matplotlib).",
)
@verbose_option
def inspect_command(model: Path, as_json: bool, plot: Path | None, verbose: bool) -> None:
    """Say what is in DIR: its source, geometry, formats, sizes on 1 to 8 NUMA nodes, and errors."""
    with _sentences("lsg inspect", verbose=verbose):
        report = inspect(model)
        if plot is not None:
            save_plot(report, plot)
    if as_json:
        console.write_json(sys.stdout, "report", report.as_json())
    else:
        click.echo("\n".join(lines(report)))
