"""What of this machine helps or hinders serving experts from memory: findings with advice in words.

Invariant: pure; everything that is judged is in Facts. A thing that the kernel does not show is no finding.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lsg.runtime.console import size
from lsg.runtime.doctor_facts import Facts

# From this many cores a socket has enough memory channels for its firmware to offer several nodes.
DIVISIBLE_CORES: Final = 16
# A node with this much less memory available than the fullest holds back what all can take.
UNEVEN: Final = 0.8
LOCKED_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Finding:
    """level: "good", "note" or "advice". For advice: why it matters, and what to do."""

    topic: str
    level: str
    found: str
    why: str = ""
    action: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Every finding, in the order of what costs most."""
    checks = (
        _processor,
        _nodes,
        _memory,
        _containers,
        _huge_pages,
        _reserved,
        _governor,
        _locked,
        _swap,
        _balancing,
        _gpus,
    )
    return [finding for check in checks for finding in check(facts)]


def _processor(facts: Facts) -> Iterator[Finding]:
    cores, usable = len(facts.host.cores), facts.host.usable_cores
    threads = facts.host.default_threads()
    found = f"{facts.cpu}, {facts.isa}: {cores} cores, {usable} usable, engine threads by default {threads}"
    if facts.isa in ("scalar", "avx2"):
        yield Finding(
            "processor",
            "advice",
            found,
            "without AVX-512 VNNI prompts are read several times slower; answers come from memory as fast",
            "serve on a processor with AVX-512 VNNI or AMX, or in a virtual machine that passes them on"
            if facts.virtual
            else "for long prompts choose a processor with AVX-512 VNNI or AMX",
        )
    else:
        yield Finding("processor", "good", found)


def _nodes(facts: Facts) -> Iterator[Finding]:
    nodes = facts.host.topology.nodes
    homes = facts.host.home_nodes
    crew = Counter(facts.host.home_of(core) for core in facts.host.cores)
    experts = ", ".join(f"node {home} with {_several(crew[home], 'core')}" for home in homes)
    found = (
        f"{_several(len(nodes), 'NUMA node')} on {_several(facts.sockets, 'socket')}; experts on {experts}"
    )
    cores_per_socket = len(facts.host.cores) / facts.sockets
    if len(set(crew.values())) > 1:
        yield Finding(
            "nodes",
            "advice",
            found,
            "a node's share of the experts follows its cores, and its memory must hold them",
            "give this process equally many cores of every node (taskset, the container's cpuset)",
        )
    elif len(nodes) <= facts.sockets and cores_per_socket >= DIVISIBLE_CORES and not facts.virtual:
        name = "NPS4" if "AMD" in facts.cpu else "SNC4 (or SNC2)"
        yield Finding(
            "nodes",
            "advice",
            found,
            "a socket that is one node spreads each page over all its memory channels, some of them far away",
            f"set NUMA nodes per socket to {name} in the BIOS; a repacked model serves any number of nodes",
        )
    elif facts.virtual and len(homes) == 1 and len(facts.host.cores) > DIVISIBLE_CORES:
        yield Finding(
            "nodes",
            "advice",
            found,
            "a guest that spans several of its host's nodes without seeing them reads memory from far away",
            "let the hypervisor show the host's nodes to the guest, or pin the guest to one of them",
        )
    else:
        yield Finding("nodes", "good", found)
    for node in nodes:
        if node.holds_memory and node.index not in homes:
            yield Finding(
                "nodes",
                "note",
                f"node {node.index} has {size(node.memory_bytes)} and no usable core: no experts",
            )
        elif not node.holds_memory and node.cpus:
            reason = "without memory" if node.allowed else "whose memory this process may not use"
            nearest = facts.host.topology.nearest(node.index, homes)
            found = f"node {node.index}, {reason}: its cores work for node {nearest}"
            yield Finding("nodes", "note", found)


def _memory(facts: Facts) -> Iterator[Finding]:
    nodes = [facts.host.topology.node(home) for home in facts.host.home_nodes]
    each = ", ".join(
        f"node {node.index}: {size(node.available_bytes)} of {size(node.memory_bytes)}" for node in nodes
    )
    found = f"available for experts {each}"
    least, most = (pick(node.available_bytes for node in nodes) for pick in (min, max))
    if least < UNEVEN * most:
        yield Finding(
            "memory",
            "advice",
            found,
            "each node holds its own share of the experts, so the fullest node sets the limit",
            "end what fills that node (numastat -m shows it), or serve with --spill",
        )
    else:
        yield Finding("memory", "good", found)


def _containers(facts: Facts) -> Iterator[Finding]:
    limits, cpus = facts.host.limits, sum(len(core.cpus) for core in facts.host.cores)
    if limits.memory_bytes is not None and limits.memory_bytes < facts.memory_bytes:
        yield Finding(
            "container",
            "advice",
            f"a control group allows {size(limits.memory_bytes)} of {size(facts.memory_bytes)}",
            "the experts count against it, and past it the kernel kills the server",
            "raise it to the experts' size and some GB (docker run --memory, MemoryMax=)",
        )
    if limits.quota_cpus is not None:
        yield Finding(
            "container",
            "advice",
            f"a control group grants the time of {limits.quota_cpus:g} CPUs",
            "when it is spent all threads stop for up to 100 ms, in the middle of a layer",
            "name the CPUs instead of their time (docker run --cpuset-cpus, AllowedCPUs=)",
        )
    if cpus < facts.online_cpus:
        yield Finding("container", "note", f"this process may use {cpus} of {facts.online_cpus} logical CPUs")


def _huge_pages(facts: Facts) -> Iterator[Finding]:
    if not facts.huge_pages:
        return
    found = f"transparent huge pages: {facts.huge_pages}"
    if facts.huge_pages == "never":
        yield Finding(
            "2 MiB pages",
            "advice",
            found,
            "experts in 4 KiB pages cost decode up to a third of the memory's speed",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    else:
        yield Finding("2 MiB pages", "good", found)


def _reserved(facts: Facts) -> Iterator[Finding]:
    if facts.reserved_huge_bytes >= 1 << 30:
        yield Finding(
            "2 MiB pages",
            "advice",
            f"{size(facts.reserved_huge_bytes)} reserved as huge pages and unused",
            "nothing else can use that memory, and lsg needs no reserved pages",
            "sysctl vm.nr_hugepages=0",
        )


def _governor(facts: Facts) -> Iterator[Finding]:
    if not facts.governors:
        return
    found = f"frequency governor: {', '.join(facts.governors)}"
    if facts.governors == ("performance",):
        yield Finding("governor", "good", found)
    else:
        yield Finding(
            "governor",
            "advice",
            found,
            "cores that wait for a layer clock down, and are slow when it comes",
            "cpupower frequency-set -g performance",
        )


def _locked(facts: Facts) -> Iterator[Finding]:
    locked = facts.host.limits.locked_bytes
    if locked is not None and locked < max(LOCKED_BYTES, facts.memory_bytes // 2):
        yield Finding(
            "locked memory",
            "advice",
            f"this process may lock {size(locked)}",
            "experts that are not locked can be dropped from memory when it gets short",
            "ulimit -l unlimited (LimitMEMLOCK=infinity, docker run --ulimit memlock=-1)",
        )
    else:
        yield Finding("locked memory", "good", f"may be {'all' if locked is None else size(locked)}")


def _swap(facts: Facts) -> Iterator[Finding]:
    if facts.swap_bytes:
        yield Finding(
            "swap",
            "advice",
            f"{size(facts.swap_bytes)} of swap",
            "experts that were copied into memory can end up there, and come back one page at a time",
            "swapoff -a, or sysctl vm.swappiness=1",
        )
    else:
        yield Finding("swap", "good", "none")


def _balancing(facts: Facts) -> Iterator[Finding]:
    if facts.numa_balancing and len(facts.host.topology.nodes) > 1:
        yield Finding(
            "NUMA balancing",
            "advice",
            "the kernel moves pages to the threads that touch them",
            "experts are where they belong already; looking for better places interrupts every thread",
            "sysctl kernel.numa_balancing=0",
        )


def _gpus(facts: Facts) -> Iterator[Finding]:
    gpus = facts.host.topology.gpus
    if not gpus:
        yield Finding("GPU", "note", "none on the PCI bus: sglang runs on the CPU")
    for gpu in gpus:
        nearest = "nearest node unknown" if gpu.node is None else f"next to node {gpu.node}"
        found = f"{gpu.address}, {nearest}"
        if gpu.link_width:
            found += f", PCIe x{gpu.link_width}"
        if gpu.link_gt_per_s:
            found += f" at {gpu.link_gt_per_s:g} GT/s (idle GPUs slow down)"
        if gpu.link_width and gpu.link_width_max and gpu.link_width < gpu.link_width_max:
            yield Finding(
                "GPU",
                "advice",
                f"{found}; it has x{gpu.link_width_max}",
                "prompts stream experts over this link, at half the speed with half the lanes",
                "move the card to a full slot, or undo the slot's bifurcation in the BIOS",
            )
        else:
            yield Finding("GPU", "good", found)


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
