"""Who computes what: workers on the nodes that hold experts, and each node's range of every layer's units.

Invariant: pure. No two processes share a core, a node's workers run on its cores (or those of nodes without
memory that it is the nearest home of), and the nodes' unit ranges follow each other without gap or overlap.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from lsg import CapacityError, CompatError
from lsg._core import NodeWorkers
from lsg.runtime.host import Host
from lsg.runtime.topology import Core

BINDINGS: Final = ("core", "node")
# The core's word for memory of whatever node.
ANY_NODE: Final = -1


@dataclass(frozen=True)
class NodeTeam:
    """The workers of one NUMA node.

    cpus: for each worker the logical CPUs it may run on. cores: this process's physical cores on the node;
    the node's units are in proportion.
    """

    node: int
    cpus: tuple[tuple[int, ...], ...]
    cores: int


@dataclass(frozen=True)
class Placement:
    """One serving process's workers, by rising node.

    caller_works: the thread that calls the engine is the first worker and runs where it likes.
    """

    teams: tuple[NodeTeam, ...]
    caller_works: bool = False

    @property
    def threads(self) -> int:
        """Workers in all."""
        return sum(len(team.cpus) for team in self.teams)

    @property
    def cpus(self) -> list[int]:
        """A logical CPU for each worker."""
        return [worker[0] for team in self.teams for worker in team.cpus]

    @property
    def workers(self) -> list[NodeWorkers]:
        """The same for the engine."""
        nodes = []
        for team in self.teams:
            cpus: list[tuple[int, ...]] = list(team.cpus)
            if self.caller_works:
                cpus[0] = ()
            nodes.append(NodeWorkers(team.node, cpus))
        return nodes

    def node_units(self, units: int) -> list[int]:
        """How many of `units` units each team takes: equally many for equally many cores, but one."""
        return shares(units, [team.cores for team in self.teams])

    def memory(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """Where the units [begin, end) should lie: (node, begin, end) of each team.

        On a machine of one node no page can be on a wrong one, and the node is ANY_NODE.
        """
        ranges = self.node_ranges(begin, end)
        return [(ANY_NODE, first, last) for _, first, last in ranges] if self.caller_works else ranges

    def node_ranges(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(node, begin, end) of each team for the units [begin, end)."""
        ranges = []
        for team, count in zip(self.teams, self.node_units(end - begin), strict=True):
            ranges.append((team.node, begin, begin + count))
            begin += count
        return ranges


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in proportion to `weights`; what is left over goes one by one to the largest fractions.

    With equal weights: base + remainder, the first ones take one more.
    """
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    by_fraction = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def unit_range(num_units: int, rank: int, ranks: int) -> tuple[int, int]:
    """Units [begin, end) of tensor-parallel rank `rank`: base + remainder, the first ranks take one more.

    Raises CompatError when there are more ranks than units.
    """
    if ranks > num_units:
        msg = f"tensor parallel size {ranks}, but a layer of this model splits into {num_units} units at most"
        raise CompatError(msg)
    counts = shares(num_units, [1] * ranks)
    begin = sum(counts[:rank])
    return begin, begin + counts[rank]


def plan(
    host: Host,
    *,
    threads: int | None = None,
    process: int = 0,
    processes: int = 1,
    replicas: int = 1,
    bind: str = "core",
) -> Placement:
    """The placement of one of several equal processes; `threads` None: the host's default.

    The processes are those of `replicas` that each hold all experts, one replica's after the other's.

    Process i serves the i-th GPU, as sglang numbers both. bind "core" pins each worker to a logical CPU,
    hyperthreads only when the cores run out; "node" to all of the process's CPUs on the node. Raises
    CapacityError when there are not so many.
    """
    threads = threads or host.default_threads(processes)
    each = processes // replicas
    share = _divide(_replica(host, process // each, replicas, each), each)[process % each]
    logical = sum(len(core.cpus) for core in share)
    if threads > logical:
        msg = (
            f"{threads} threads for each of {processes} serving processes, but each has {logical} "
            f"logical CPUs here; choose --threads {max(1, logical)} or less"
        )
        raise CapacityError(msg)
    by_home: dict[int, list[Core]] = {}
    for core in share:
        by_home.setdefault(host.home_of(core), []).append(core)
    # With fewer threads than nodes, the nodes with most cores have them.
    chosen = sorted(by_home, key=lambda node: (-len(by_home[node]), node))[:threads]
    nodes = sorted(chosen)
    counts = _fill(threads, [by_home[node] for node in nodes])
    teams = []
    for node, count in zip(nodes, counts, strict=True):
        cores = by_home[node]
        everywhere = tuple(sorted(cpu for core in cores for cpu in core.cpus))
        cpus = [(cpu,) for cpu in _choose(cores, count)] if bind == "core" else [everywhere] * count
        teams.append(NodeTeam(node, tuple(cpus), len(cores)))
    # With one node the caller is next to the memory wherever it runs: let it work instead of wait.
    return Placement(tuple(teams), caller_works=len(host.topology.nodes) == 1)


def describe(placed: Placement) -> str:
    """Where a process's workers are, in words."""
    return ", ".join(f"{len(team.cpus)} on node {team.node}" for team in placed.teams)


def _fill(threads: int, nodes: list[list[Core]]) -> list[int]:
    """Workers of each node, at least one, in proportion to its cores and at most its logical CPUs."""
    limits = [sum(len(core.cpus) for core in cores) for cores in nodes]
    counts = [
        min(limit, max(1, n)) for limit, n in zip(limits, shares(threads, [*map(len, nodes)]), strict=True)
    ]
    while sum(counts) != threads:
        step = 1 if sum(counts) < threads else -1
        movable = [i for i, count in enumerate(counts) if (count < limits[i] if step > 0 else count > 1)]
        # The emptiest node gains, the fullest loses.
        chosen = min(movable, key=lambda i: (step * counts[i] / len(nodes[i]), i))
        counts[chosen] += step
    return counts


def _choose(cores: list[Core], count: int) -> list[int]:
    """Logical CPUs for `count` workers: a core each, the first cores left free; then second hyperthreads."""
    first = [core.cpus[0] for core in cores]
    if count <= len(first):
        return first[len(first) - count :]
    deepest = max(len(core.cpus) for core in cores)
    others = [core.cpus[rank] for rank in range(1, deepest) for core in cores if rank < len(core.cpus)]
    return first + others[: count - len(first)]


def _replica(host: Host, index: int, replicas: int, processes: int) -> Host:
    """One replica's part of the machine: on every node as many cores as all of them can have there.

    They map the same pages, so that all must agree on which node each belongs.
    """
    if replicas == 1:
        return host
    cores: list[Core] = []
    for node in host.topology.nodes:
        here = [core for core in host.cores if core.node == node.index]
        fair = len(here) // replicas
        cores += here[index * fair : (index + 1) * fair]
    if not cores:
        msg = f"{replicas} data-parallel replicas, but no NUMA node has as many cores; start fewer"
        raise CapacityError(msg)
    gpus = host.gpu_addresses[index * processes : (index + 1) * processes]
    return replace(host, topology=replace(host.topology, cores=tuple(cores)), gpu_addresses=gpus)


def _divide(host: Host, processes: int) -> list[list[Core]]:
    """Each process's cores: as many for everyone as can be, those nearest to its GPU first."""
    if processes > len(host.cores):
        msg = f"{processes} serving processes, but only {len(host.cores)} cores; start fewer"
        raise CapacityError(msg)
    anchors = [_anchor(host, process, processes) for process in range(processes)]
    wanted = Counter(anchors)
    quotas = shares(len(host.cores), [1] * processes)
    free = list(host.cores)
    taken: list[list[Core]] = [[] for _ in range(processes)]
    # At home first, where the processes of several GPUs share a node; then what is left, nearest first.
    for process, anchor in enumerate(anchors):
        here = [core for core in host.cores if host.home_of(core) == anchor]
        position = anchors[:process].count(anchor)
        fair = shares(len(here), [1] * wanted[anchor])[position]
        mine = [core for core in free if host.home_of(core) == anchor][: min(fair, quotas[process])]
        taken[process] += mine
        free = [core for core in free if core not in mine]
    for process, anchor in enumerate(anchors):
        missing = quotas[process] - len(taken[process])
        node = host.topology.node(anchor)
        free.sort(key=lambda core: (node.distance(host.home_of(core)), host.home_of(core), core.cpus))
        taken[process] += free[:missing]
        free = free[missing:]
    return taken


def _anchor(host: Host, process: int, processes: int) -> int:
    """The home nearest to the process's GPU; in turn where no GPU or no nearest node is known."""
    homes = host.home_nodes
    address = host.gpu_addresses[process] if process < len(host.gpu_addresses) else ""
    node = host.topology.gpu_node(address) if address else None
    nearest = None if node is None else host.topology.nearest(node, homes)
    return homes[process * len(homes) // processes] if nearest is None else nearest
