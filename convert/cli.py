"""The lsg-convert command.

Invariant: only words and exit codes here; every failure is one sentence on standard error, exit code 1 (2 for
usage, 130 after Ctrl-C).
"""

import os
import re
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click

from lsg import CheckpointError, LsgError
from lsg.convert import console, targets
from lsg.convert.job import Options, Summary, convert
from lsg.convert.workdir import partial_of

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--experts",
    type=click.Choice(targets.NAMES),
    required=True,
    help="How to store the routed experts. int4: 4 bits and a bf16 scale for every 32 weights, 4.5 bits a "
    "weight. bf16, fp16: 16 bits; without any loss when the checkpoint has the same type.",
)
@click.option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help="int4: choose each scale for the least squared error, or take it from the largest weight (faster).",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="all cores",
    help="Experts converted at the same time; each takes a few times its size of memory.",
)
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left in OUT.partial.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print progress and the result as JSON, one object a line."
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="lsg")
def main(
    source: Path,
    out: Path,
    experts: str,
    search: bool,
    threads: int,
    restart: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Repack the mixture-of-experts checkpoint in directory SRC into OUT, for lsg-serve.

    SRC holds safetensors as published on Hugging Face. OUT becomes a model directory with the same
    configuration and tokenizer, the routed experts in the files that the engine maps, and all other weights
    unchanged.

    OUT appears when it is complete. Until then the work is in OUT.partial: after an interruption the same
    command continues it.

    \b
    Example:
      lsg-convert Qwen3-30B-A3B Qwen3-30B-A3B-int4 --experts int4
    """  # noqa: D301 (\b keeps click from joining the example's lines)
    options = Options(experts=experts, search=search, threads=threads, restart=restart)
    progress = console.make_progress(as_json=as_json)
    try:
        _check_source(source)
        summary = convert(source, out, options, progress)
    except KeyboardInterrupt:
        progress.close()
        _fail(f"interrupted; run the same command again to continue from {partial_of(out)}", 130)
    except (LsgError, OSError) as error:
        progress.close()
        if verbose:
            traceback.print_exc()
        if isinstance(error, OSError):
            _fail(f"{error.filename or out}: {error.strerror or error}", 1)
        _fail(str(error), 1)
    progress.close()
    if as_json:
        console.write_json(sys.stdout, "summary", asdict(summary))
    else:
        click.echo(_sentence(summary))


def _check_source(source: Path) -> None:
    if source.is_dir():
        return
    if not source.exists() and _HUB_ID.fullmatch(str(source)):
        msg = (
            f"{source}: no such directory; if it is a Hub id, download it first: "
            f"hf download {source} --local-dir {source.name}"
        )
        raise CheckpointError(msg)
    msg = f"{source}: not a directory; the source must be a Hugging Face model directory"
    raise CheckpointError(msg)


def _sentence(summary: Summary) -> str:
    rate = summary.converted_bytes / summary.seconds / 1e9 if summary.seconds else 0.0
    error = "" if summary.worst_error is None else f"; worst relative squared error {summary.worst_error:.2e}"
    return (
        f"{summary.out}: {summary.slabs} experts in {summary.layers} layers as {summary.experts} "
        f"({console.size_text(summary.expert_bytes)}), other weights unchanged "
        f"({console.size_text(summary.resident_bytes)}); {summary.seconds:.1f} s, {rate:.2f} GB/s read{error}"
    )


def _fail(sentence: str, code: int) -> NoReturn:
    click.secho(f"lsg-convert: {' '.join(sentence.splitlines())}", fg="red", err=True)
    sys.exit(code)
