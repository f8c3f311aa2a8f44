"""Machines that are not here: hosts for plans, and /sys and /proc trees for what reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsg.runtime.host import Host
from lsg.runtime.limits import Limits
from lsg.runtime.topology import Core, Gpu, Node, Topology

GIB = 1 << 30


def host(
    nodes: Mapping[int, int] | Sequence[int],
    *,
    gib: Mapping[int, int] | None = None,
    smt: int = 1,
    distances: Mapping[tuple[int, int], int] | None = None,
    quota_cpus: float | None = None,
    gpu_nodes: Sequence[int | None] = (),
) -> Host:
    """A host with so many cores on each node, 64 GiB each unless `gib` says otherwise.

    nodes: cores by node number. CPUs are numbered core by core, second hyperthreads after all cores.
    """
    counts = dict(nodes) if isinstance(nodes, Mapping) else dict(enumerate(nodes))
    total = sum(counts.values())
    cores, found, first = [], [], 0
    for index, count in counts.items():
        mine = [tuple(cpu + sibling * total for sibling in range(smt)) for cpu in range(first, first + count)]
        first += count
        cores += [Core(cpus, index) for cpus in mine]
        memory = (64 if gib is None else gib.get(index, 64)) * GIB
        far = {other: (distances or {}).get((index, other), 10 if other == index else 21) for other in counts}
        found.append(
            Node(index, tuple(cpu for cpus in mine for cpu in cpus), memory, memory, True, tuple(far.items()))
        )
    gpus = tuple(Gpu(f"0000:{bus:02x}:00.0", node) for bus, node in enumerate(gpu_nodes, 1))
    return Host(
        Topology(tuple(cores), tuple(found), gpus),
        sum(node.memory_bytes for node in found),
        Limits(quota_cpus=quota_cpus),
        tuple(gpu.address for gpu in gpus),
    )


@dataclass
class Tree:
    """A /sys and /proc under a directory."""

    root: Path
    nodes: dict[int, list[int]] = field(default_factory=dict)

    def write(self, path: str, text: object) -> None:
        """One kernel file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def add_node(
        self, index: int, cpus: str, *, total_gib: int, free_gib: int = 0, distance: str = "10"
    ) -> None:
        """One NUMA node; `cpus` in the kernel's list format."""
        at = f"sys/devices/system/node/node{index}"
        self.write(f"{at}/cpulist", cpus)
        self.write(f"{at}/distance", distance)
        lines = {"MemTotal": total_gib, "MemFree": free_gib, "Inactive(file)": 0}
        text = "\n".join(f"Node {index} {name}:  {gib << 20} kB" for name, gib in lines.items())
        self.write(f"{at}/meminfo", text)

    def add_siblings(self, *groups: Sequence[int]) -> None:
        """Logical CPUs of one core each."""
        for group in groups:
            for cpu in group:
                at = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
                self.write(at, ",".join(map(str, group)))

    def add_gpu(self, address: str, node: int, **files: object) -> None:
        """One NVIDIA GPU; `files` are attributes of its PCI device."""
        given = {"vendor": "0x10de", "class": "0x030200", "numa_node": node, **files}
        for name, value in given.items():
            self.write(f"sys/bus/pci/devices/{address}/{name}", value)
