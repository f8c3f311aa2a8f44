"""What the kernel says about this process's memory and threads: move_pages, numa_maps, task status.

Invariant: nothing is taken from lsg, so that its own account of where things are is not the only witness.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGE = 4096
SYS_SET_MEMPOLICY = 238
SYS_MOVE_PAGES = 279
POLICY_DEFAULT = 0
POLICY_BIND = 2
MASK_BITS = 1024

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a system call; raises OSError when it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def node_of_pages(address: int, size: int) -> npt.NDArray[np.int32]:
    """The NUMA node of each page that [address, address + size) touches; negative where there is none."""
    first = address // PAGE
    pages = np.arange(first, -(-(address + size) // PAGE), dtype=np.uint64) * PAGE
    status = np.full(pages.size, -1, np.int32)
    count = ctypes.c_ulong(pages.size)
    asked, told = ctypes.c_void_p(pages.ctypes.data), ctypes.c_void_p(status.ctypes.data)
    checked(_libc.syscall(SYS_MOVE_PAGES, 0, count, asked, None, told, 0), "move_pages")
    return status


def bind_memory(node: int | None) -> None:
    """New pages of the calling thread come from this node alone; None: from the node it runs on."""
    if node is None:
        checked(_libc.syscall(SYS_SET_MEMPOLICY, POLICY_DEFAULT, None, 0), "set_mempolicy")
        return
    mask = (ctypes.c_ulong * (MASK_BITS // 64))()
    mask[node // 64] = 1 << node % 64
    checked(_libc.syscall(SYS_SET_MEMPOLICY, POLICY_BIND, mask, MASK_BITS), "set_mempolicy")


@dataclass(frozen=True)
class Mapping:
    """A readable part of the address space. path: empty for anonymous memory; offset: of its start in it.

    pages: those in memory, by node, as numa_maps counts them in units of 4 KiB.
    """

    begin: int
    end: int
    offset: int
    path: str
    policy: str
    pages: dict[int, int]

    def bytes(self) -> npt.NDArray[np.uint8]:
        """Its memory, not a copy."""
        size = self.end - self.begin
        return np.frombuffer((ctypes.c_char * size).from_address(self.begin), np.uint8)


def mappings() -> list[Mapping]:
    """All readable mappings of this process."""
    policies = dict(_numa_maps(Path("/proc/self/numa_maps").read_text()))
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, offset, _, _, *path = line.split(maxsplit=5)
        if access[0] != "r":
            continue
        begin, end = (int(address, 16) for address in place.split("-"))
        policy, pages = policies.get(begin, ("", {}))
        found.append(Mapping(begin, end, int(offset, 16), "".join(path), policy, pages))
    return found


def _numa_maps(text: str) -> Iterator[tuple[int, tuple[str, dict[int, int]]]]:
    for line in text.splitlines():
        address, policy, *fields = line.split()
        named = dict(item.split("=", 1) for item in fields if "=" in item)
        unit = int(named.get("kernelpagesize_kB", 4)) // 4
        pages = {int(key[1:]): int(n) * unit for key, n in named.items() if re.fullmatch(r"N\d+", key)}
        yield int(address, 16), (policy, pages)


def huge_page_bytes(begins: set[int]) -> int:
    """How much of the mappings that begin there is in 2 MiB pages."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line)
        if head:
            counts = int(head[1], 16) in begins
        elif counts and line.startswith("AnonHugePages:"):
            total += int(line.split()[1]) * 1024
    return total


@dataclass(frozen=True)
class Task:
    """A thread: the logical CPUs it may run on, and the one it ran on last."""

    allowed: tuple[int, ...]
    last: int


def tasks() -> dict[int, Task]:
    """The threads of this process by thread id."""
    found = {}
    for directory in Path("/proc/self/task").iterdir():
        try:
            status, stat = ((directory / name).read_text() for name in ("status", "stat"))
        except (FileNotFoundError, ProcessLookupError):
            # A thread that was joined may be listed for another moment.
            continue
        allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", status)
        # Fields after the name, which is in brackets and may hold blanks; the 39th of all is the processor.
        fields = stat.rpartition(")")[2].split()
        found[int(directory.name)] = Task(tuple(parse_list(allowed[1])), int(fields[39 - 3]))
    return found


def free_bytes(node: int) -> int:
    """Free memory of a node; pages of the page cache are not free."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    return int(re.search(r"MemFree:\s*(\d+) kB", text)[1]) * 1024


def reserved_bytes(node: int) -> int:
    """What the kernel keeps free on a node for itself: nobody else gets the last pages."""
    pages = 0
    for zone in Path("/proc/zoneinfo").read_text().split("Node ")[1:]:
        high = re.search(r"^\s+high\s+(\d+)$", zone, re.MULTILINE)
        if zone.startswith(f"{node},") and high:
            pages += int(high[1])
    return pages * PAGE


def read_bytes() -> int:
    """What this process has caused to be read from disks."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


def parse_list(text: str) -> list[int]:
    """The kernel's list format: "0-3,8" is 0, 1, 2, 3, 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
