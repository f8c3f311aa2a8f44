"""Observed facts about this machine: the cores this process may use, where they are, and free memory.

Invariant: only what the kernel reports under /sys and /proc, cut down to the process's CPU set and cgroup
limits; a file that is missing means that the kernel sets no such limit.
"""

import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lsg import CapacityError

# Left to sglang's own processes, the kernel and the network.
SPARE_CORES = 4


@dataclass(frozen=True)
class Core:
    """One physical core: the logical CPUs of it that this process may use, and its NUMA node."""

    cpus: tuple[int, ...]
    node: int


@dataclass(frozen=True)
class Host:
    """What there is to work with.

    cores: by node, then by first logical CPU. quota_cpus: CPU time per wall time that the cgroup grants, None
    for no limit. memory_available_bytes: what can be used without swapping; file pages that can be dropped
    count.
    """

    cores: tuple[Core, ...]
    quota_cpus: float | None
    memory_available_bytes: int

    @property
    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes that have a usable core."""
        return tuple(sorted({core.node for core in self.cores}))

    @property
    def usable_cores(self) -> int:
        """Physical cores that can be busy at the same time."""
        if self.quota_cpus is None:
            return len(self.cores)
        return max(1, min(len(self.cores), math.floor(self.quota_cpus)))

    def default_threads(self, processes: int = 1) -> int:
        """Workers of each serving process: all cores but a few, at least half of them, at least one."""
        return max(1, max(self.usable_cores - SPARE_CORES, (self.usable_cores + 1) // 2) // processes)

    def cpus_for(self, threads: int, process: int = 0, processes: int = 1) -> list[int]:
        """Logical CPUs to pin `threads` workers of one process to; no two processes share a core.

        First siblings come first, so that hyperthreads are used only when the cores run out. Raises
        CapacityError.
        """
        share = self.cores[
            process * len(self.cores) // processes : (process + 1) * len(self.cores) // processes
        ]
        siblings = max((len(core.cpus) for core in share), default=0)
        ordered = [core.cpus[rank] for rank in range(siblings) for core in share if rank < len(core.cpus)]
        if threads > len(ordered):
            msg = (
                f"{threads} threads for each of {processes} serving processes, but each has {len(ordered)} "
                f"logical CPUs here; choose --threads {max(1, len(ordered))} or less"
            )
            raise CapacityError(msg)
        return ordered[:threads]


def observe(root: Path = Path("/"), allowed: set[int] | None = None) -> Host:
    """Look at this machine; `root` and `allowed` (logical CPUs) are for tests."""
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    nodes = {cpu: node for node, cpus in _nodes(root) for cpu in cpus}
    cores: dict[tuple[int, ...], Core] = {}
    for cpu in sorted(allowed):
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        mine = tuple(sibling for sibling in parse_list(siblings or str(cpu)) if sibling in allowed)
        cores.setdefault(mine, Core(mine, nodes.get(cpu, 0)))
    groups = list(_cgroups(root))
    quotas = [quota for quota in map(_quota, groups) if quota is not None]
    rooms = [room for room in map(_memory_room, groups) if room is not None]
    return Host(
        cores=tuple(sorted(cores.values(), key=lambda core: (core.node, core.cpus))),
        quota_cpus=min(quotas, default=None),
        memory_available_bytes=min([_memory_available(root), *rooms]),
    )


def gpu_count() -> int:
    """CUDA devices that the driver shows this process, CUDA_VISIBLE_DEVICES respected; 0 without a driver.

    Asks the driver itself: torch would answer too, after seconds of importing.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def parse_list(text: str) -> list[int]:
    """The kernel's list format: "0-3,8" is 0, 1, 2, 3, 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _nodes(root: Path) -> Iterator[tuple[int, list[int]]]:
    for directory in (root / "sys/devices/system/node").glob("node[0-9]*"):
        yield int(directory.name.removeprefix("node")), parse_list(_text(directory / "cpulist") or "")


def _cgroups(root: Path) -> Iterator[Path]:
    """The process's cgroup (version 2) and its ancestors; a limit of any of them binds."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            mount = root / "sys/fs/cgroup"
            group = mount / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _quota(group: Path) -> float | None:
    quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _memory_room(group: Path) -> int | None:
    limit = _text(group / "memory.max")
    used = _text(group / "memory.current")
    if limit in (None, "max") or used is None:
        return None
    statistics = dict(line.split() for line in (_text(group / "memory.stat") or "").splitlines())
    # Page cache counts as used but gives way: the experts themselves are such pages.
    droppable = int(statistics.get("active_file", 0)) + int(statistics.get("inactive_file", 0))
    return int(str(limit)) - int(used) + droppable


def _memory_available(root: Path) -> int:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
