"""How experts come into memory: the mode, the room for it on each node, and what was found afterwards.

Invariant: the decisions are pure. Experts are in memory once: mapped, they are the file's own pages; copied,
what was read leaves the page cache.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsg import CapacityError
from lsg._core import LayerFile, PartResidency
from lsg.runtime.placement import ANY_NODE
from lsg.runtime.topology import Topology

# A node's range of a layer's units: (node, first unit, one past the last).
Range = tuple[int, int, int]
_THP = Path("sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Blobs:
    """What the layer files tell before they are loaded.

    cached_bytes: in the page cache already. maps_huge: mapping them gives 2 MiB pages. in_memory: their file
    system has no disk, so a copy would be a second one. huge_pages: what the kernel says under
    transparent_hugepage.
    """

    total_bytes: int
    cached_bytes: int
    maps_huge: bool
    in_memory: bool
    huge_pages: str


@dataclass(frozen=True)
class Choice:
    """The mode and why, in half a sentence."""

    mode: str
    reason: str


def look_at(paths: Sequence[Path], root: Path = Path("/")) -> Blobs:
    """Look at layer files; reads 2 MiB of one of them."""
    files = [LayerFile(str(path)) for path in paths]
    try:
        setting = (root / _THP).read_text()
    except OSError:
        setting = "[never]"
    return Blobs(
        total_bytes=sum(file.spec.file_bytes for file in files),
        cached_bytes=sum(file.cached_bytes() for file in files),
        maps_huge=bool(files) and files[len(files) // 2].maps_huge(),
        in_memory=any(file.lives_in_memory for file in files),
        huge_pages=setting.partition("[")[2].partition("]")[0],
    )


def shared(mode: str, replicas: int) -> str:
    """The mode for data-parallel replicas, which hold the same experts once. Raises CapacityError."""
    if replicas > 1 and mode == "huge":
        msg = (
            f"--load huge: each of {replicas} data-parallel replicas would have a copy of the experts; with "
            "--load map they share one"
        )
        raise CapacityError(msg)
    return "map" if replicas > 1 else mode


def choose(mode: str, blobs: Blobs, replicas: int = 1) -> Choice:
    """The mode to load with; `auto` weighs decode speed before the time a restart takes.

    Raises CapacityError when `replicas` would hold more than one copy.
    """
    cached = f"{_gb(blobs.cached_bytes)} of {_gb(blobs.total_bytes)} GB are in memory already"
    if shared(mode, replicas) != mode:
        return Choice("map", f"{replicas} data-parallel replicas share the files' own pages; {cached}")
    if mode != "auto":
        return Choice(mode, f"as asked for; {cached}")
    if blobs.in_memory:
        return Choice("map", "the files are in memory, where a copy would be a second one")
    if blobs.maps_huge:
        return Choice("map", f"the files' own pages are 2 MiB here, so nothing is copied; {cached}")
    if blobs.huge_pages == "never":
        return Choice(
            "map", f"this kernel's transparent_hugepage is never, so a copy gains nothing; {cached}"
        )
    return Choice(
        "huge",
        f"the files' own pages are 4 KiB here, which decode slower; a restart reads them again; {cached}",
    )


@dataclass(frozen=True)
class Room:
    """Memory that a NUMA node can give: free, or file pages that can be dropped.

    distances: of the other nodes, as the kernel counts; a missing one is the farthest.
    """

    available_bytes: int
    distances: Mapping[int, int] = dataclasses.field(default_factory=dict)


def rooms_of(topology: Topology) -> dict[int, Room]:
    """What each node of the machine can give this process."""
    return {
        node.index: Room(node.available_bytes, dict(node.distances))
        for node in topology.nodes
        if node.holds_memory
    }


def fit(
    layers: Sequence[Sequence[Range]],
    unit_bytes: Sequence[int],
    rooms: Mapping[int, Room],
    *,
    spill: bool,
    left_bytes: int | None = None,
) -> list[list[Range]]:
    """Where each layer's units are to lie: as given, or with `spill` in part on the nearest nodes with room.

    layers: each one's ranges; unit_bytes: each one's size of a unit; rooms: by node (nodes that are not in it
    are not checked); left_bytes: what the process may still use in all. Raises CapacityError with the numbers
    when memory is short.
    """
    needs: dict[int, int] = {}
    for ranges, size in zip(layers, unit_bytes, strict=True):
        for node, begin, end in ranges:
            needs[node] = needs.get(node, 0) + (end - begin) * size
    total = sum(needs.values())
    if left_bytes is not None and total > left_bytes:
        msg = (
            f"the experts need {_gb(total)} GB of memory, but {_gb(left_bytes)} GB are available to this "
            "process; end what uses it, raise the limit of its control group or container, or use experts "
            "of fewer bits (lsg-convert --experts int4)"
        )
        raise CapacityError(msg)
    missing = {
        node: need - rooms[node].available_bytes
        for node, need in needs.items()
        if node in rooms and need > rooms[node].available_bytes
    }
    if not missing:
        return [list(ranges) for ranges in layers]
    spare = {node: room.available_bytes - needs.get(node, 0) for node, room in rooms.items()}
    spare = {node: count for node, count in spare.items() if count > 0}
    if not spill:
        raise _short(needs, missing, rooms, spare)
    placed = _spilt(layers, unit_bytes, rooms, missing, spare)
    if placed is None:
        raise _short(needs, missing, rooms, spare)
    return placed


def _spilt(
    layers: Sequence[Sequence[Range]],
    unit_bytes: Sequence[int],
    rooms: Mapping[int, Room],
    missing: Mapping[int, int],
    spare: Mapping[int, int],
) -> list[list[Range]] | None:
    """The ranges with whole units moved until every node fits; None when the others have no room either."""
    short, left = dict(missing), dict(spare)
    placed = []
    for ranges, size in zip(layers, unit_bytes, strict=True):
        mine: list[Range] = []
        for node, begin, end in ranges:
            moved = min(end - begin, -(-max(0, short.get(node, 0)) // size))
            if moved:
                short[node] -= moved * size
            kept = end - moved
            mine.append((node, begin, kept))
            distances = rooms[node].distances if node in rooms else {}
            for other in sorted(left, key=lambda n: (distances.get(n, 255), n)):
                taken = min(end - kept, left[other] // size)
                if taken:
                    left[other] -= taken * size
                    mine.append((other, kept, kept + taken))
                    kept += taken
            if kept < end:
                return None
        placed.append([found for found in mine if found[1] < found[2]] or mine[:1])
    return placed


def _short(
    needs: Mapping[int, int],
    missing: Mapping[int, int],
    rooms: Mapping[int, Room],
    spare: Mapping[int, int],
) -> CapacityError:
    node = max(missing, key=lambda n: missing[n])
    what = (
        f"node {node} needs {_gb(needs[node])} GB of memory for its experts, but "
        f"{_gb(rooms[node].available_bytes)} GB are available there"
    )
    if sum(missing.values()) <= sum(spare.values()):
        others = ", ".join(f"{_gb(count)} GB on node {n}" for n, count in sorted(spare.items()))
        return CapacityError(f"{what}; end what uses it, or choose --spill to use some of {others}")
    return CapacityError(
        f"{what}, and the other nodes have no room for the rest; use experts of fewer bits "
        "(lsg-convert --experts int4) or a machine with more memory"
    )


@dataclass(frozen=True)
class NodeFound:
    """Where the units of one node are. bytes: of the node's units; the others are parts of it."""

    node: int
    bytes: int
    local_bytes: int
    unknown_bytes: int
    huge_bytes: int


def found(parts: Sequence[PartResidency]) -> list[NodeFound]:
    """One entry for each node that units belong to."""
    by_node: dict[int, list[PartResidency]] = {}
    for part in parts:
        by_node.setdefault(part.node, []).append(part)
    return [
        NodeFound(
            node,
            sum(part.bytes for part in mine),
            sum(
                sum(part.bytes_on.values()) if node == ANY_NODE else part.bytes_on.get(node, 0)
                for part in mine
            ),
            sum(part.unknown_bytes for part in mine),
            sum(part.huge_bytes for part in mine),
        )
        for node, mine in sorted(by_node.items())
    ]


def describe(node: NodeFound) -> str:
    """One line about one node."""
    name = "any node" if node.node == ANY_NODE else f"node {node.node}"
    if node.bytes == 0:
        return f"{name}: no experts"
    where = "in memory" if node.node == ANY_NODE else "there"
    seen = f"{_percent(node.local_bytes, node.bytes)} of them {where}"
    if node.unknown_bytes:
        seen = "where they are the kernel does not tell"
    huge = f"{_percent(node.huge_bytes, node.bytes)} in 2 MiB pages"
    return f"{name}: {_gb(node.bytes)} GB of experts, {seen}, {huge}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g}" if count < 1e11 else f"{count / 1e9:.0f}"


def _percent(part: int, whole: int) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{1000 * part // whole / 10:g} %"
