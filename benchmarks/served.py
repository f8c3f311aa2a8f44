"""Serves every model family with sglang and lsg's plugin, and compares log-probabilities with transformers.

No measurement but a proof, like families.py: on small checkpoints with the published names and encodings of
the experts, everything else in BF16. Each case is a process of its own that imports sglang once: on a CPU
children of one process that has, on a GPU several at a time. The result depends on the commit, on sglang's
release and on where it runs.
"""

import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import machine

sys.path[:0] = [str(machine.ROOT / "tests")]

from checkpoints import families, servable  # noqa: E402

CASES = tuple(case for case in families.CASES if case[0] in servable.MODELS)


@click.command()
@click.option(
    "--model", "models", multiple=True, type=click.Choice(list(servable.MODELS)), help="Only these."
)
@click.option("--update", is_flag=True, help="Take all other cases from benchmarks/results.")
@click.option("--formats", type=int, help="At most so many formats of a model.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Cases at a time.")
@click.option("--timeout", type=int, default=300, show_default=True, help="Seconds for one case.")
@click.option("--limit", type=int, help="Seconds for all of them; what is not done by then is left out.")
@click.option("--logs", type=click.Path(path_type=Path), help="Directory for what sglang says.")
@click.option("--out", type=click.Path(path_type=Path), help="Result file; default: benchmarks/results.")
def main(
    models: tuple[str, ...],
    update: bool,
    formats: int | None,
    jobs: int,
    timeout: int,
    limit: int | None,
    logs: Path | None,
    out: Path | None,
) -> None:
    """Serve the whole matrix; exit with 1 if a case that was served gave other answers."""
    # Exact activations: what int8 ones cost is measured elsewhere. Not bound to a core: all jobs would choose
    # the same one.
    os.environ |= {"LSG_ACTIVATIONS": "float", "LSG_THREADS": "1", "LK_THREAD_BINDING": "NUMA_NODE"}
    os.environ["HF_HUB_OFFLINE"] = "1"
    where, context = _context()
    on_a_cpu = where == "CPU"
    chosen = _choose(models, formats, on_a_cpu=on_a_cpu)
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        deadline = time.monotonic() + (limit or math.inf)
        limits = (timeout, deadline)
        for case in _run_all(context, chosen, jobs, limits, logs or Path(scratch), on_a_cpu=on_a_cpu):
            cases.append(case)
            click.echo(f"{case['model']:24} {case['format']:22} {case['seconds']:5.0f} s  {_words(case)}")
    result = {"commit": machine.describe(1)["commit"], "where": where, "sglang": _release(), "cases": cases}
    kept = machine.RESULTS / ("served_cpu.json" if where == "CPU" else "served_gpu.json")
    if update:
        cases += _others(json.loads(kept.read_text()), result)
    cases.sort(key=lambda case: CASES.index((case["model"], case["format"])))
    out = out or kept
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(case["state"] == "wrong" for case in cases))


def _others(earlier: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Cases of an earlier run that this one lacks, each with the commit, release and place of that run."""
    done = {(case["model"], case["format"]) for case in result["cases"]}
    others = [case for case in earlier["cases"] if (case["model"], case["format"]) not in done]
    return [{key: earlier[key] for key in ("commit", "where", "sglang")} | case for case in others]


def _choose(models: tuple[str, ...], formats: int | None, *, on_a_cpu: bool) -> list[tuple[str, str]]:
    """Every model's first format, then the second ones; on a GPU first the models that no CPU can serve."""
    forms: dict[str, list[str]] = {}
    for model, form in CASES:
        if not models or model in models:
            forms.setdefault(model, []).append(form)
    ranked = [
        (rank, on_a_cpu or not servable.MODELS[model].not_on_a_cpu, model, form)
        for model, found in forms.items()
        for rank, form in enumerate(found[:formats])
    ]
    return [(model, form) for _, _, model, form in sorted(ranked, key=lambda case: case[:2])]


def _context() -> tuple[str, BaseContext]:
    """Where it runs, and how processes start there: CUDA does not survive a fork."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), multiprocessing.get_context("spawn")
    from integration import in_process

    in_process.prepare()
    return "CPU", multiprocessing.get_context("fork")


def _release() -> str:
    from importlib.metadata import version

    return version("sglang")


def _run_all(
    context: BaseContext,
    cases: list[tuple[str, str]],
    jobs: int,
    limits: tuple[int, float],
    logs: Path,
    *,
    on_a_cpu: bool,
) -> Iterator[dict[str, Any]]:
    """Results as they come. limits: seconds for a case, and the moment after which none is waited for."""
    timeout, deadline = limits
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(cases)
    running: dict[Connection, tuple[BaseProcess, tuple[str, str], float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop(0)
            reason = servable.MODELS[case[0]].obstacle(on_a_cpu=on_a_cpu)
            if reason:
                yield {
                    "model": case[0],
                    "format": case[1],
                    "seconds": 0.0,
                    "state": "failed",
                    "reason": reason,
                }
                continue
            receiver, sender = context.Pipe(duplex=False)
            log = logs / f"{case[0]}_{case[1]}.log".replace("/", "-")
            process = context.Process(target=_child, args=(*case, log, sender))  # type: ignore[attr-defined]
            process.start()
            sender.close()
            running[receiver] = (process, case, time.monotonic())
        ready = wait(list(running), timeout=1)
        if time.monotonic() > deadline:
            for process, _, _ in running.values():
                process.kill()
            return
        for receiver, (process, case, started) in list(running.items()):
            late = time.monotonic() - started > timeout
            if receiver not in ready and not late:
                continue
            if late:
                process.kill()
            outcome = _outcome(receiver, late=late, timeout=timeout)
            process.join()
            del running[receiver]
            seconds = round(time.monotonic() - started, 1)
            yield {"model": case[0], "format": case[1], "seconds": seconds} | outcome


def _outcome(receiver: Connection, *, late: bool, timeout: int) -> dict[str, Any]:
    if late:
        return _failed(f"not done after {timeout} s")
    try:
        return dict(receiver.recv())
    except EOFError:
        return _failed("the process died")


def _failed(reason: str) -> dict[str, Any]:
    return {"state": "failed", "reason": reason}


def _child(model: str, form: str, log: Path, sender: Connection) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sender.send(_prove(model, form))
        # sglang's threads do not end by themselves.
        sys.stdout.flush()
        os._exit(0)


def _prove(model: str, form: str) -> dict[str, Any]:
    try:
        from integration import in_process, served

        in_process.prepare()
        with tempfile.TemporaryDirectory() as scratch:
            verdict = served.prove(model, form, Path(scratch))
    except BaseException as error:
        traceback.print_exc()
        return _failed(_where(error))
    if not verdict.sharp:
        return _failed("its answers prove nothing: rounding would hide a wrong expert")
    return {"state": "served" if verdict.good else "wrong"} | asdict(verdict)


def _where(error: BaseException) -> str:
    """The innermost of sglang's lines on the way to the error, and its sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "/sglang/" in frame.filename]
    place = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}: " if inside else ""
    lines = str(error).strip().splitlines()
    return f"{place}{type(error).__name__} {lines[0] if lines else ''}".strip()[:200]


def _words(case: dict[str, Any]) -> str:
    if case["state"] == "failed":
        return f"not served: {case['reason']}"
    return (
        f"{case['state']}: {case['positions']} positions, deviation {case['deviation']:.1e} of at most "
        f"{case['bound']:.1e}; standard deviations {case['sigmas']:.2f}, {case['wrong']:.0f} when wrong"
    )


if __name__ == "__main__":
    main()
