"""`lsg-serve`: check a model directory, say what will happen, and become sglang's server.

Invariant: everything that can be known to go wrong is found before sglang starts, in one sentence and exit
code 1.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

import click

from lsg import CompatError, LsgError, __version__
from lsg._core import select_isa
from lsg.runtime import console, host, launch, load_plan, placement, settings
from lsg.runtime.model import RepackedModel, check_ordinary, is_repacked, open_model
from lsg.runtime.sglang import compat

PLUGIN_GROUP = "sglang.srt.plugins"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="Engine threads of each serving process.")
@click.option(
    "--activations",
    type=click.Choice(settings.ACTIVATIONS),
    help="Experts' inputs: rounded to int8 or bf16 (default), or floats.",
)
@click.option(
    "--bind", type=click.Choice(placement.BINDINGS), help="Pin threads to cores (default) or to NUMA nodes."
)
@click.option(
    "--power-saving/--no-power-saving",
    default=None,
    help="Engine threads sleep between layers: cooler, a little slower.",
)
@click.option(
    "--load",
    type=click.Choice(settings.LOADS),
    help="Experts are the files' own pages (map), a copy in 2 MiB pages (huge), or what suits (auto).",
)
@click.option(
    "--spill/--no-spill", default=None, help="Experts that do not fit on their NUMA node may lie on others."
)
@click.option(
    "--hand-over",
    type=click.Choice(settings.HAND_OVERS),
    help="How a CUDA graph and the engine take turns; the default was the fastest when measured.",
)
@click.option("--hybrid/--no-hybrid", default=None, help="--no-hybrid: exactly stock sglang.")
@click.option("--check", is_flag=True, help="Verify every checksum first; reads all experts.")
@click.option(
    "--json", "as_json", is_flag=True, default=None, help="Plan and load progress as JSON lines on stdout."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks.")
@click.version_option(__version__, prog_name="lsg-serve")
@click.argument("arguments", metavar="[SGLANG_ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def main(
    directory: Path,
    threads: int | None,
    activations: str | None,
    bind: str | None,
    power_saving: bool | None,
    load: str | None,
    spill: bool | None,
    hand_over: str | None,
    hybrid: bool | None,
    check: bool,
    as_json: bool | None,
    dry_run: bool,
    verbose: bool,
    arguments: tuple[str, ...],
) -> None:
    """Serve the model directory DIR with sglang, its routed experts computed by lsg.

    DIR comes from lsg-convert; an ordinary model directory is served by sglang alone. Every option that is
    not listed here goes to sglang's server as it stands, such as --port 8000 or --tp-size 2.
    """
    try:
        given: dict[tuple[str, ...], str | int | None] = {
            ("LSG_THREADS", "LK_THREADS"): threads,
            ("LSG_ACTIVATIONS",): activations,
            ("LK_THREAD_BINDING",): settings.binding_name(bind),
            ("LK_POWER_SAVING",): power_saving,
            ("LSG_LOAD", "LVLLM_ENABLE_NUMA_INTERLEAVE", "LK_NUMA_INTERLEAVE"): load,
            ("LSG_SPILL",): spill,
            ("LSG_HAND_OVER",): hand_over,
            ("LSG_JSON",): as_json,
            ("LVLLM_MOE_NUMA_ENABLED", "LK_MOE_HYBRID_ENABLED"): hybrid,
        }
        chosen = _settings(given, arguments)
        model = _open(directory, chosen, check=check)
        load_line = ""
        if model is not None:
            paths = [model.path_of(layer) for layer in model.manifest.layers]
            choice = load_plan.choose(
                chosen.load, load_plan.look_at(paths), launch.parallel_sizes(arguments).replicas
            )
            # Decided once for all serving processes: the first to load changes what the others would see.
            chosen = replace(chosen, load=choice.mode)
            load_line = f"{choice.mode}: {choice.reason}"
        started = launch.plan(
            directory, model, arguments, chosen, host.observe(), host.gpu_count(), dict(os.environ)
        )
        facts = _facts(
            directory, model, select_isa(chosen.isa).name.lower(), chosen.activations, load_line, started
        )
        if chosen.json:
            console.event("plan", **dict(facts), warning=started.warning)
        else:
            _say(directory, model, facts)
        if started.warning:
            console.warn(started.warning)
    except LsgError as error:
        console.error(error, with_traceback=verbose)
        raise SystemExit(1) from None
    if not dry_run:
        _become(started)


def _settings(
    given: Mapping[tuple[str, ...], str | int | None], arguments: tuple[str, ...]
) -> settings.Settings:
    """The environment's settings with the command line's on top; `given`: by all names of a setting."""
    environ = dict(os.environ)
    for names, value in given.items():
        if value is not None:
            for name in names:
                environ.pop(name, None)
            environ[names[0]] = str(int(value)) if isinstance(value, bool) else str(value)
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in settings.LATER_OPTIONS:
            raise settings.later(name, settings.LATER_OPTIONS[name])
    return settings.read(environ)


def _open(directory: Path, chosen: settings.Settings, *, check: bool) -> RepackedModel | None:
    """The repacked model, or None when sglang alone serves the directory."""
    if not is_repacked(directory):
        check_ordinary(directory)
        return None
    model = open_model(directory)
    model.check_settings(chosen)
    if check:
        for done, _ in enumerate(model.verify(), 1):
            console.note(f"checksums right: {done} of {len(model.manifest.layers)} layers")
    compat.check(compat.installed_root())
    if not any(point.name == launch.PLUGIN for point in entry_points(group=PLUGIN_GROUP)):
        msg = f"sglang would not find lsg: no {launch.PLUGIN!r} in {PLUGIN_GROUP!r}; install lsg again"
        raise CompatError(msg)
    return model


def _facts(
    directory: Path,
    model: RepackedModel | None,
    isa: str,
    activations: str,
    load_line: str,
    started: launch.Launch,
) -> list[tuple[str, str]]:
    """What will happen."""
    command = shlex.join(started.argv)
    if model is None:
        return [("command", command)]
    layers = model.manifest.layers
    processes = f"{started.processes} process" + ("es" if started.processes > 1 else "")
    return [
        (
            "experts",
            f"{len(layers)} layers of {layers[0].num_experts} experts, {model.dtypes}, "
            f"{console.size(model.expert_bytes)} in {directory / 'experts'}",
        ),
        ("load", load_line),
        (
            "the rest",
            "sglang, on the CPU" if started.on_cpu else "sglang, on the GPU",
        ),
        (
            "engine",
            f"{processes} of {started.threads} threads ({started.where}), {isa}, "
            f"{activations} activations; OMP_NUM_THREADS={started.environ['OMP_NUM_THREADS']}",
        ),
        (
            "memory",
            f"{console.size(started.needed_bytes)} for weights of "
            f"{console.size(started.available_bytes)} available",
        ),
        ("command", command),
    ]


def _say(directory: Path, model: RepackedModel | None, facts: list[tuple[str, str]]) -> None:
    if model is None:
        console.note(f"{directory} was not made by lsg-convert: sglang serves it alone")
    else:
        console.note(f"{directory}: {model.manifest.architecture} from {model.manifest.source.model}")
    console.facts(facts)


def _become(started: launch.Launch) -> NoReturn:
    os.execve(started.argv[0], started.argv, started.environ)


if __name__ == "__main__":
    main()
