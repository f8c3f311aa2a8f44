"""What this process is allowed to use: control groups of both versions, and its own resource limits.

Invariant: the tightest limit of a group and its ancestors binds; a file that is missing sets no limit.
"""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lsg.runtime.topology import read

# Version 1 says "no limit" with the largest multiple of a page that fits; no machine has as much.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class Limits:
    """None: no limit.

    quota_cpus: CPU time per wall time. memory_bytes: of the tightest group. memory_left_bytes: what that
    still allows; file pages that can be dropped count as room. locked_bytes: memory that may be locked.
    """

    quota_cpus: float | None = None
    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    locked_bytes: int | None = None


def observe(root: Path = Path("/")) -> Limits:
    """Look at this process; `root` is for tests."""
    groups = list(_groups(root))
    rooms = [room for room in (_memory(group) for group in groups) if room is not None]
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Limits(
        quota_cpus=min((quota for quota in map(_quota, groups) if quota is not None), default=None),
        memory_bytes=min((limit for limit, _ in rooms), default=None),
        memory_left_bytes=min((left for _, left in rooms), default=None),
        locked_bytes=None if locked == resource.RLIM_INFINITY else locked,
    )


def _groups(root: Path) -> Iterator[Path]:
    """The process's groups and their ancestors, in every hierarchy.

    A container may show the path as the host sees it, while its mount starts at its own group; the mount's
    root is then the one that exists.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            chosen = [mounts, mounts / "unified"]
        else:
            chosen = [mounts / name for name in {controllers, *controllers.split(",")}]
        for mount in chosen:
            group = mount / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _quota(group: Path) -> float | None:
    quota, _, period = (read(group / "cpu.max") or "max").partition(" ")
    if quota != "max":
        return int(quota) / int(period)
    old, old_period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
    if old is None or old_period is None or int(old) <= 0:
        return None
    return int(old) / int(old_period)


def _memory(group: Path) -> tuple[int, int] | None:
    """Limit and what is left of it."""
    limit, used = read(group / "memory.max"), read(group / "memory.current")
    prefix = ""
    if limit is None:
        # Version 1 counts a group's descendants in the lines with "total_".
        limit, used = read(group / "memory.limit_in_bytes"), read(group / "memory.usage_in_bytes")
        prefix = "total_"
    if limit in (None, "max") or used is None or int(str(limit)) >= _UNLIMITED_BYTES:
        return None
    statistics = dict(line.split() for line in (read(group / "memory.stat") or "").splitlines())
    # Page cache counts as used but gives way: the experts themselves are such pages.
    droppable = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return int(str(limit)), int(str(limit)) - int(used) + droppable
