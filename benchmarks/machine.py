"""What a result was measured on, and the file it goes into.

A result names its machine by what it is made of, never by a host name; every rate is kept as median, lowest
and highest of its repetitions.
"""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from lsg.runtime.bench.machine import describe as facts_of
from lsg.runtime.bench.machine import name as name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def scratch_option(text: str) -> Callable[[Any], Any]:
    """--scratch of a command that needs a disk; build/bench of this checkout by default."""
    return click.option(
        "--scratch",
        type=click.Path(file_okay=False, path_type=Path),
        default=ROOT / "build" / "bench",
        show_default="build/bench",
        help=text,
    )


def describe(threads: int) -> dict[str, Any]:
    """The facts that decide what a measurement is worth."""
    # Results and the tables made of them do not change what is measured.
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!*README.md")
    commit = _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    return {**facts_of(threads), "commit": commit}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest, to six digits."""
    chosen = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.6g}") for name, value in chosen.items()}


def save(what: str, facts: dict[str, Any], out: Path | None = None, **body: object) -> Path:
    """Write `out`, by default benchmarks/results/<what>-<machine>.json, whole or not at all."""
    path = out or RESULTS / f"{what}-{facts['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(json.dumps({"machine": facts, **body}, indent=1) + "\n")
    Path(file.name).chmod(0o644)
    return Path(file.name).replace(path)


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else "unknown"
