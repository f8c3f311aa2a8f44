"""The lsg-convert command.

Invariant: only words and exit codes here; every failure is one sentence on standard error, exit code 1 (2 for
usage, 130 after Ctrl-C).
"""

import re
import sys
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click

from lsg import CheckpointError, LsgError, manifest
from lsg.convert import console, targets, workdir
from lsg.convert.job import Options, Summary, convert
from lsg.convert.options import json_option, threads_option, verbose_option
from lsg.convert.origin import LocalOrigin, Origin

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--experts",
    type=click.Choice(targets.NAMES),
    required=True,
    help="How to store the routed experts. keep: exactly as the checkpoint has them. int4: 4 bits and a bf16 "
    "scale for every 32 weights, 4.5 bits a weight. int8: likewise, 8.5 bits. fp8: e4m3, 8 bits. "
    "mxfp4, nvfp4: 4-bit floats, 4.25 and 4.5 bits. bf16, fp16: 16 bits. Experts that have the chosen type "
    "already, with any groups, are kept without loss; experts of 4 bits only become bf16 or fp16.",
)
@click.option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help=f"{', '.join(sorted(targets.SEARCHING))}: choose each scale for the least squared error, or take it "
    "from the largest weight (faster).",
)
@threads_option("Experts converted at the same time; each takes a few times its size of memory.")
@click.option("--revision", help="Hub id: the branch, tag or commit to convert; by default the main branch.")
@click.option(
    "--stream",
    is_flag=True,
    help="Hub id: download a shard, convert it, delete it, go on with the next, so that the disk never "
    "holds both models.",
)
@click.option(
    "--push-to-hub", metavar="ID", help="Upload OUT to this repository on the Hub when it is complete."
)
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left in OUT.partial.")
@json_option("Print progress and the result as JSON, one object a line.")
@verbose_option
@click.version_option(package_name="lsg")
def main(
    source: Path,
    out: Path,
    experts: str,
    search: bool,
    threads: int,
    revision: str | None,
    stream: bool,
    push_to_hub: str | None,
    restart: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Repack the mixture-of-experts checkpoint SRC into OUT, for lsg-serve.

    SRC is a directory with safetensors as published on Hugging Face, or a Hub id, which is downloaded into
    the Hub's cache. OUT becomes a model directory with the same configuration and tokenizer, the routed
    experts in the files that the engine maps, and all other weights unchanged.

    OUT appears when it is complete. Until then the work is in OUT.partial: after an interruption the same
    command continues it.

    \b
    Examples:
      lsg-convert Qwen/Qwen3-30B-A3B Qwen3-30B-A3B-int4 --experts int4
      lsg-convert checkpoints/mine mine-bf16 --experts bf16
    """  # noqa: D301 (\b keeps click from joining the example's lines)
    options = Options(experts=experts, search=search, threads=threads, restart=restart)
    progress = console.make_progress(as_json=as_json)
    summary = None
    try:
        with ExitStack() as stack:
            if not (push_to_hub and _is_finished(out, source, options)):
                origin = _open_origin(source, out, revision, progress, stack, stream=stream, restart=restart)
                summary = convert(origin, out, options, progress)
        if push_to_hub:
            progress.say(f"uploading {out} to {push_to_hub}")
            _push(out, push_to_hub)
    except KeyboardInterrupt:
        progress.close()
        fail(f"interrupted; run the same command again to continue from {workdir.partial_of(out)}", 130)
    except (LsgError, OSError) as error:
        progress.close()
        fail(error, 1, place=out, verbose=verbose)
    progress.close()
    if summary and as_json:
        console.write_json(sys.stdout, "summary", asdict(summary))
    elif summary:
        click.echo(_sentence(summary))


def _open_origin(
    source: Path,
    out: Path,
    revision: str | None,
    progress: console.Progress,
    stack: ExitStack,
    *,
    stream: bool,
    restart: bool,
) -> Origin:
    if source.is_dir() or source.exists() or not _HUB_ID.fullmatch(str(source)):
        if revision or stream:
            msg = f"--revision and --stream are for models on the Hub, and {source} is not the id of one"
            raise click.UsageError(msg)
        if not source.is_dir():
            msg = f"{source}: not a directory; the source must be a Hugging Face model directory or a Hub id"
            raise CheckpointError(msg)
        return LocalOrigin(source)
    workdir.check_place(source, out)
    begun = None if restart else workdir.unfinished(out)
    same = begun is not None and (begun.model, begun.asked) == (str(source), revision)
    # Imported here: a local directory needs no HTTP client, which takes a third of a second to import.
    from lsg.convert import hub

    return stack.enter_context(
        hub.open_model(
            str(source), revision, begun.revision if begun and same else None, stream=stream, say=progress.say
        )
    )


def _is_finished(out: Path, source: Path, options: Options) -> bool:
    """Whether OUT is what this command would make, so that only the upload is left."""
    if not manifest.path_in(out).exists():
        return False
    found = manifest.load(out)
    return found.options == options.shaping and found.source.model in (str(source), source.resolve().name)


def _push(out: Path, hub_id: str) -> None:
    from lsg.convert import hub

    click.echo(hub.push(out, hub_id))


def _sentence(summary: Summary) -> str:
    rate = summary.converted_bytes / summary.seconds / 1e9 if summary.seconds else 0.0
    error = "" if summary.worst_error is None else f"; worst relative squared error {summary.worst_error:.2e}"
    return (
        f"{summary.out}: {summary.slabs} experts in {summary.layers} layers as {summary.experts} "
        f"({console.size_text(summary.expert_bytes)}), other weights unchanged "
        f"({console.size_text(summary.resident_bytes)}); {summary.seconds:.1f} s, {rate:.2f} GB/s read{error}"
    )


def fail(
    error: Exception | str,
    code: int,
    *,
    command: str = "lsg-convert",
    place: Path | None = None,
    verbose: bool = False,
) -> NoReturn:
    """Say what went wrong in one red line, and exit."""
    if verbose:
        traceback.print_exc()
    sentence = str(error)
    if isinstance(error, OSError):
        sentence = f"{error.filename or place}: {error.strerror or error}"
    click.secho(f"{command}: {' '.join(sentence.splitlines())}", fg="red", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
