"""Where things are in this machine: NUMA nodes, their cores and memory, and the GPUs beside them.

Invariant: only what the kernel reports under /sys and /proc. Node numbers are the kernel's and need not be
dense; a node may lack CPUs or memory. What this process may not use (affinity, cpuset) is left out of the
cores, and marked in the nodes.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The kernel's distance of a node to itself, and what stands for one it does not tell.
LOCAL_DISTANCE: Final = 10
UNKNOWN_DISTANCE: Final = 255
NVIDIA: Final = "0x10de"
# PCI class codes of displays and of processors that drive none.
GPU_CLASSES: Final = ("0x0300", "0x0302")


@dataclass(frozen=True)
class Core:
    """One physical core: the logical CPUs of it that this process may use, and its NUMA node."""

    cpus: tuple[int, ...]
    node: int


@dataclass(frozen=True)
class Node:
    """One NUMA node, online.

    cpus: all its logical CPUs. memory_bytes: 0 for a node without memory. available_bytes: free, or file
    pages that can be dropped. allowed: whether this process may have memory from it. distances: (node,
    distance) for every node.
    """

    index: int
    cpus: tuple[int, ...]
    memory_bytes: int
    available_bytes: int
    allowed: bool = True
    distances: tuple[tuple[int, int], ...] = ()

    @property
    def holds_memory(self) -> bool:
        """Whether this process can have memory here."""
        return self.allowed and self.memory_bytes > 0

    def distance(self, other: int) -> int:
        """The kernel's distance to another node; 10 is here."""
        far = LOCAL_DISTANCE if other == self.index else UNKNOWN_DISTANCE
        return dict(self.distances).get(other, far)


@dataclass(frozen=True)
class Gpu:
    """A GPU on the PCI bus; node: its nearest NUMA node, None where the kernel does not know."""

    address: str
    node: int | None
    link_width: int | None = None
    link_width_max: int | None = None
    link_gt_per_s: float | None = None
    link_gt_per_s_max: float | None = None


@dataclass(frozen=True)
class Topology:
    """What there is, by rising number: cores this process may use, all nodes, all NVIDIA GPUs."""

    cores: tuple[Core, ...]
    nodes: tuple[Node, ...]
    gpus: tuple[Gpu, ...] = ()

    def node(self, index: int) -> Node:
        """The node with this number; one without CPUs and memory when the kernel knows none."""
        return next((node for node in self.nodes if node.index == index), Node(index, (), 0, 0))

    def nearest(self, node: int, among: Iterable[int]) -> int | None:
        """The node of `among` that is nearest to `node`, the lower number first; None of nothing."""
        here = self.node(node)
        return min(among, key=lambda other: (here.distance(other), other), default=None)

    def gpu_node(self, address: str) -> int | None:
        """The node beside the GPU at a PCI address, in any of the ways to write one."""
        wanted = _pci_address(address)
        return next((gpu.node for gpu in self.gpus if gpu.address == wanted), None)


def observe(root: Path = Path("/"), allowed: set[int] | None = None) -> Topology:
    """Look at this machine; `root` and `allowed` (logical CPUs) are for tests."""
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    nodes = _nodes(root)
    node_of = {cpu: node.index for node in nodes for cpu in node.cpus}
    cores: dict[tuple[int, ...], Core] = {}
    for cpu in sorted(allowed):
        siblings = read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        mine = tuple(sibling for sibling in parse_list(siblings or str(cpu)) if sibling in allowed)
        cores.setdefault(mine, Core(mine, node_of.get(cpu, 0)))
    return Topology(
        cores=tuple(sorted(cores.values(), key=lambda core: (core.node, core.cpus))),
        nodes=nodes,
        gpus=_gpus(root),
    )


def parse_list(text: str) -> list[int]:
    """The kernel's list format: "0-3,8" is 0, 1, 2, 3, 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def read(path: Path) -> str | None:
    """The stripped text of a kernel file, None when there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def kibibytes(text: str, name: str) -> int:
    """A line of a meminfo file in bytes, 0 when it is missing."""
    found = re.search(rf"\b{re.escape(name)}:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def available_bytes(meminfo: str) -> int:
    """Bytes that can be had without swapping, by a meminfo file; a node's has no line for that."""
    told = kibibytes(meminfo, "MemAvailable")
    parts = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    return told or sum(kibibytes(meminfo, part) for part in parts)


def _nodes(root: Path) -> tuple[Node, ...]:
    directory = root / "sys/devices/system/node"
    indices = sorted(int(path.name.removeprefix("node")) for path in directory.glob("node[0-9]*"))
    status = read(root / "proc/self/status") or ""
    mems = re.search(r"^Mems_allowed_list:\s*(\S+)$", status, flags=re.MULTILINE)
    allowed = set(parse_list(mems[1])) if mems else set(indices)
    if not indices:
        # A kernel without NUMA: one node that has everything.
        cpus = tuple(parse_list(read(root / "sys/devices/system/cpu/online") or ""))
        meminfo = read(root / "proc/meminfo") or ""
        return (Node(0, cpus, kibibytes(meminfo, "MemTotal"), available_bytes(meminfo)),)
    reserved = _reserved_bytes(read(root / "proc/zoneinfo") or "")
    nodes = []
    for index in indices:
        own = directory / f"node{index}"
        # The only node has all memory, whatever it says itself: virtual machines with 126 GB were seen to
        # show 9.6 GB there.
        meminfo = read(root / "proc/meminfo" if len(indices) == 1 else own / "meminfo") or ""
        # In the order of the online nodes, whatever their numbers are.
        distances = [int(word) for word in (read(own / "distance") or "").split()]
        nodes.append(
            Node(
                index=index,
                cpus=tuple(parse_list(read(own / "cpulist") or "")),
                memory_bytes=kibibytes(meminfo, "MemTotal"),
                available_bytes=max(0, available_bytes(meminfo) - reserved.get(index, 0)),
                allowed=index in allowed,
                distances=tuple(zip(indices, distances, strict=False)),
            )
        )
    return tuple(nodes)


def _reserved_bytes(zoneinfo: str) -> dict[int, int]:
    """What the kernel keeps free on each node, as MemAvailable counts it: the zones' high marks and reserves.

    Memory that is bound to a node and needs more than the rest of it wakes the OOM killer.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    reserved: dict[int, int] = {}
    for node, zone in re.findall(r"^Node (\d+), zone.*\n((?:[ \t].*\n?)*)", zoneinfo, flags=re.MULTILINE):
        marks = dict(re.findall(r"^\s+(high|managed)\s+(\d+)$", zone, flags=re.MULTILINE))
        lower = re.search(r"protection: \(([\d, ]+)\)", zone)
        kept = int(marks.get("high", 0)) + max(map(int, lower[1].split(","))) if lower else 0
        kept = min(kept, int(marks.get("managed", 0)))
        reserved[int(node)] = reserved.get(int(node), 0) + kept * page_bytes
    return reserved


def _gpus(root: Path) -> tuple[Gpu, ...]:
    gpus = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if read(device / "vendor") != NVIDIA or not (read(device / "class") or "").startswith(GPU_CLASSES):
            continue
        node = int(read(device / "numa_node") or -1)
        gpus.append(
            Gpu(
                address=device.name,
                node=node if node >= 0 else None,
                link_width=_width(read(device / "current_link_width")),
                link_width_max=_width(read(device / "max_link_width")),
                link_gt_per_s=_speed(read(device / "current_link_speed")),
                link_gt_per_s_max=_speed(read(device / "max_link_speed")),
            )
        )
    return tuple(gpus)


def _width(text: str | None) -> int | None:
    # A virtual machine's bus says 0 or 255 for "no idea".
    return int(text) if text and text.isdecimal() and 0 < int(text) < 64 else None


def _speed(text: str | None) -> float | None:
    found = re.match(r"([\d.]+) GT/s", text or "")
    return float(found[1]) if found else None


def _pci_address(text: str) -> str:
    """As sysfs writes it: four digits of domain, lower case."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}" if rest.count(":") else f"0000:{domain}:{rest}"
