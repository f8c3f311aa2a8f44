"""What a result was measured on: what decides its worth, and never a host name."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import lsg
from lsg import _core


def describe(threads: int) -> dict[str, Any]:
    """The processor, its instruction-set level, compiler and kernel settings."""
    cpus = len(os.sched_getaffinity(0))
    return {
        "name": name(),
        "version": lsg.__version__,
        "cpu": _cpu_model(),
        "isa": _core.select_isa().name.lower(),
        "logical_cpus": cpus,
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


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _compiler() -> str:
    # Compilers sign the object files; asking c++ --version would name one that need not have been used.
    found = re.search(rb"(GCC: \([^)]*\) [\d.]+|clang version [\d.]+)", Path(_core.__file__).read_bytes())
    return found.group(1).decode() if found else "unknown"


def _kernel(path: str) -> str:
    try:
        return (Path("/sys") / path).read_text().strip()
    except FileNotFoundError:
        return "not shown by this kernel"


def _chosen(setting: str) -> str:
    found = re.search(r"\[(\w+)\]", setting)
    return found.group(1) if found else setting
