"""What a result was measured on, and the file it goes into.

A result names its machine by what it is made of, never by a host name; every rate is kept as median, lowest
and highest of its repetitions.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lsg._core

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def describe(threads: int) -> dict[str, Any]:
    """The facts that decide what a measurement is worth."""
    # Results and the tables made of them do not change what is measured.
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md")
    return {
        "name": name(),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else ""),
        "cpu": _cpu_model(),
        "isa": lsg._core.select_isa().name.lower(),
        "logical_cpus": len(os.sched_getaffinity(0)),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": threads,
        "compiler": _compiler(),
        "governor": _kernel("devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepages": _chosen(_kernel("kernel/mm/transparent_hugepage/enabled")),
        "kernel": platform.release().split("-")[0],
    }


def name() -> str:
    """The machine in a file name: its processor and how many logical CPUs of it there are."""
    words = re.sub(r"\(.*?\)|\b(cpu|processor|\d+-core)\b|@.*", " ", _cpu_model(), flags=re.IGNORECASE)
    return "-".join([*re.findall(r"[a-z0-9]+", words.lower()), f"{len(os.sched_getaffinity(0))}cpu"])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest, to six digits."""
    chosen = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.6g}") for name, value in chosen.items()}


def save(what: str, machine: dict[str, Any], **body: object) -> Path:
    """Write benchmarks/results/<what>-<machine>.json whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{what}-{machine['name']}.json"
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, suffix=".tmp", delete=False) as file:
        file.write(json.dumps({"machine": machine, **body}, indent=1) + "\n")
    Path(file.name).chmod(0o644)
    return Path(file.name).replace(path)


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _compiler() -> str:
    # Compilers sign the object files; asking c++ --version would name one that need not have been used.
    found = re.search(rb"(GCC: \([^)]*\) [\d.]+|clang version [\d.]+)", Path(lsg._core.__file__).read_bytes())
    return found.group(1).decode() if found else "unknown"


def _kernel(path: str) -> str:
    try:
        return (Path("/sys") / path).read_text().strip()
    except FileNotFoundError:
        return "not shown by this kernel"


def _chosen(setting: str) -> str:
    found = re.search(r"\[(\w+)\]", setting)
    return found.group(1) if found else setting
