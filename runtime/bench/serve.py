"""`lsg bench serve`: decode rates of a served model, and how much of them is the engine.

Invariant: rate and limit come from the same steps: the limit is what the engine alone took for them.
"""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from lsg import LsgError
from lsg.runtime import console, engine, host, settings
from lsg.runtime.bench import client, engine_trace, machine, timeline
from lsg.runtime.model import open_model

PROFILED_STEPS = 12
PROFILE_SECONDS = 60.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--url", help="A server that runs already, started with LSG_TRACE.")
@click.option("--engine-trace", type=click.Path(exists=True, path_type=Path), help="Its trace: $LSG_TRACE.0")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), help="1, 2, 4, 8 and 16.")
@click.option("--prompt", default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--tokens", default=128, show_default=True, help="Tokens to decode for each request.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures."
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Chrome trace of GPU and engine at the first batch size, and a PNG beside it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks.")
@click.argument("arguments", metavar="[SERVE_ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def serve_command(
    directory: Path,
    url: str | None,
    engine_trace: Path | None,
    batches: tuple[int, ...],
    prompt: int,
    tokens: int,
    json_path: Path | None,
    trace: Path | None,
    verbose: bool,
    arguments: tuple[str, ...],
) -> None:
    """Decode at several batch sizes with the repacked model in DIR.

    Starts lsg-serve with the remaining arguments, or asks the server at --url. The engine's limit is the time
    that it spent on the experts of the same steps; what a step takes beyond it is the rest of the model and
    the way there and back.
    """
    try:
        layers = len(open_model(directory).manifest.layers)
        with _server(directory, url, engine_trace, arguments) as (server, events):
            report = [measure(server, events, layers, n, prompt, tokens) for n in batches or (1, 2, 4, 8, 16)]
            for figures in report:
                click.echo(_words(figures))
            seen: dict[str, Any] = {"idle": None}
            if trace is not None:
                seen = _timeline(server, events, trace, (batches or (1,))[0], prompt, tokens)
        if json_path is not None:
            result = {**_facts(), "layers": layers, "runs": report, **seen}
            json_path.write_text(json.dumps(result, indent=1) + "\n")
    except LsgError as error:
        console.error(error, with_traceback=verbose, command="lsg bench serve")
        raise SystemExit(1) from None


def _facts() -> dict[str, Any]:
    """What the figures were measured on."""
    found, seen = settings.read(os.environ), host.observe()
    gpus = torch.cuda.device_count()
    return {
        "machine": machine.describe(found.threads or seen.default_threads(1)),
        "gpu": torch.cuda.get_device_name() if gpus else None,
        "gpus": gpus,
        "sglang": version("sglang"),
        "spin_us": engine.spin_us(found),
    }


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("png", type=click.Path(dir_okay=False, path_type=Path))
def timeline_command(trace: Path, png: Path) -> None:
    """Draw a TRACE that `lsg bench serve --trace` wrote into the file PNG."""
    try:
        timeline.draw(json.loads(trace.read_text()), png)
    except LsgError as error:
        console.error(error, with_traceback=False, command="lsg bench timeline")
        raise SystemExit(1) from None


@contextmanager
def _server(
    directory: Path, url: str | None, events: Path | None, arguments: tuple[str, ...]
) -> Iterator[tuple[client.Server, Path]]:
    if url is not None:
        if events is None:
            msg = f"{url}: start that server with LSG_TRACE=FILE and name the trace, --engine-trace FILE.0"
            raise LsgError(msg)
        yield client.Server(url), events
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "engine"
        log = Path(scratch) / "log"
        with client.started(directory, arguments, {"LSG_TRACE": str(file)}, log) as server:
            yield server, Path(f"{file}.0")


def measure(
    server: client.Server, events: Path, layers: int, requests: int, prompt: int, tokens: int
) -> dict[str, Any]:
    """One batch size: the client's rate, and by the engine's trace the step and the engine's share of it."""
    server.decode(requests, prompt, 8)
    before = engine_trace.count(events)
    decoded = server.decode(requests, prompt, tokens)
    steps = engine_trace.steps(engine_trace.read(events, before), layers, requests)
    if len(steps.step_us) == 0:
        msg = f"no decode step of {requests} tokens was seen; is another client asking the same server?"
        raise LsgError(msg)
    step_us, engine_us, layers_us, steps_us = (
        statistics.median(times.tolist())
        for times in (steps.step_us, steps.engine_us, steps.between_layers_us, steps.between_steps_us)
    )
    return {
        "batch": requests,
        "steps": len(steps.step_us),
        "tokens_per_s": decoded.tokens_per_s,
        "step_us": step_us,
        "engine_us": engine_us,
        "engine_tokens_per_s": requests * 1e6 / engine_us,
        "share_of_engine": engine_us / step_us,
        "beside_engine_us_per_layer": (step_us - engine_us) / layers,
        # A step of one layer has nothing between layers.
        "between_layers_us": layers_us / max(1, layers - 1),
        "between_steps_us": steps_us,
    }


def _words(figures: dict[str, Any]) -> str:
    return (
        f"batch {figures['batch']:2}: {figures['tokens_per_s']:7.1f} tokens/s; "
        f"step {figures['step_us']:8.0f} µs, "
        f"engine {figures['engine_us']:8.0f} µs = {figures['share_of_engine']:.0%} "
        f"(alone {figures['engine_tokens_per_s']:.1f} tokens/s), "
        f"{figures['beside_engine_us_per_layer']:.1f} µs beside it a layer"
    )


def _timeline(
    server: client.Server, events: Path, path: Path, requests: int, prompt: int, tokens: int
) -> dict[str, Any]:
    """Profile some steps while decoding; write the trace and its picture; say what it shows."""
    with tempfile.TemporaryDirectory() as scratch:
        before = engine_trace.count(events)
        # Some releases answer when the profile starts, others when it is done.
        asking = threading.Thread(target=server.profile, args=(Path(scratch), PROFILED_STEPS))
        asking.start()
        time.sleep(1)
        server.decode(requests, prompt, tokens)
        asking.join()
        deadline = time.monotonic() + PROFILE_SECONDS
        while not (found := sorted(Path(scratch).rglob("*.trace.json*"))):
            if time.monotonic() > deadline:
                msg = "sglang's profiler wrote nothing; its log says why"
                raise LsgError(msg)
            time.sleep(0.5)
        # The file is there before it is whole.
        time.sleep(2)
        merged = timeline.merge(timeline.gpu_events(found[0]), engine_trace.read(events, before))
    path.write_text(json.dumps(merged))
    shares, between = timeline.idle_shares(merged), timeline.between_layers(merged)
    click.echo("idle: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    click.echo("between layers, µs: " + ", ".join(f"{name} {value:.1f}" for name, value in between.items()))
    try:
        timeline.draw(merged, path.with_suffix(".png"))
    except LsgError as error:
        console.note(
            f"no picture: {error}; `lsg bench timeline {path} PNG` draws it elsewhere",
            command="lsg bench serve",
        )
    under = timeline.under_the_engine(merged)
    return {"idle": shares, "between_layers": between, "gpu_under_engine": under}
