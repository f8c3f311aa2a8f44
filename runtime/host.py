"""The machine as a serving process may use it: topology, limits, GPUs, and what follows for its threads.

Invariant: a Host is cut down to the process's CPU set and to the tightest of its control groups.
"""

import ctypes
import math
from dataclasses import dataclass, field
from pathlib import Path

from lsg.runtime import limits, topology
from lsg.runtime.limits import Limits
from lsg.runtime.topology import Core, Node, Topology

# Left to sglang's own processes, the kernel and the network.
SPARE_CORES = 4


@dataclass(frozen=True)
class Host:
    """What there is to work with.

    memory_available_bytes: what can be used without swapping; file pages that can be dropped count.
    gpu_addresses: of the GPUs that CUDA shows this process, in CUDA's order.
    """

    topology: Topology
    memory_available_bytes: int
    limits: Limits = field(default_factory=Limits)
    gpu_addresses: tuple[str, ...] = ()

    @property
    def cores(self) -> tuple[Core, ...]:
        """Physical cores that this process may use, by node."""
        return self.topology.cores

    @property
    def usable_cores(self) -> int:
        """Physical cores that can be busy at the same time."""
        if self.limits.quota_cpus is None:
            return len(self.cores)
        return max(1, min(len(self.cores), math.floor(self.limits.quota_cpus)))

    @property
    def home_nodes(self) -> tuple[int, ...]:
        """Nodes that hold experts: those with memory and a core, or where there is none, node 0.

        A node without CPUs holds none, unless somebody spills to it; its memory is read from the nearest node
        with CPUs. The cores of a node without memory work for the nearest home.
        """
        crewed = {core.node for core in self.cores}
        homes = tuple(
            node.index for node in self.topology.nodes if node.holds_memory and node.index in crewed
        )
        if homes:
            return homes
        with_memory = [node.index for node in self.topology.nodes if node.holds_memory]
        first = self.cores[0].node if self.cores else 0
        nearest = self.topology.nearest(first, with_memory)
        return (first if nearest is None else nearest,)

    def home_of(self, core: Core) -> int:
        """The home that the core works for."""
        nearest = self.topology.nearest(core.node, self.home_nodes)
        return core.node if nearest is None else nearest

    def default_threads(self, processes: int = 1) -> int:
        """Workers of each serving process: all cores but a few, at least half of them, at least one."""
        return max(1, max(self.usable_cores - SPARE_CORES, (self.usable_cores + 1) // 2) // processes)


def observe(root: Path = Path("/"), allowed: set[int] | None = None) -> Host:
    """Look at this machine; `root` and `allowed` (logical CPUs) are for tests."""
    bounds = limits.observe(root)
    available = topology.available_bytes(topology.read(root / "proc/meminfo") or "")
    left = bounds.memory_left_bytes
    return Host(
        topology=topology.observe(root, allowed),
        memory_available_bytes=available if left is None else min(available, left),
        limits=bounds,
        gpu_addresses=gpu_addresses(),
    )


def flat(cores: int, memory_bytes: int, quota_cpus: float | None = None) -> Host:
    """A host of one node, for plans and tests: logical CPUs 0 … cores − 1, a core each."""
    cpus = tuple(range(cores))
    return Host(
        Topology(tuple(Core((cpu,), 0) for cpu in cpus), (Node(0, cpus, memory_bytes, memory_bytes),)),
        memory_bytes,
        Limits(quota_cpus=quota_cpus),
    )


def gpu_addresses() -> tuple[str, ...]:
    """PCI addresses of the CUDA devices that the driver shows this process; none without a driver.

    In CUDA's order, CUDA_VISIBLE_DEVICES respected. Asks the driver itself: torch would answer too, after
    seconds of importing.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    addresses = []
    for device in range(count.value):
        text = ctypes.create_string_buffer(32)
        known = driver.cuDeviceGetPCIBusId(text, len(text), device) == 0
        addresses.append(text.value.decode() if known else "")
    return tuple(addresses)


def gpu_count() -> int:
    """How many CUDA devices the driver shows this process."""
    return len(gpu_addresses())
