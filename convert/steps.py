"""Which shards a piece of work needs, and in which order shards come and go. Pure.

A piece is a slab (one expert's records) or a part (the tensors of one shard in one resident file).

Invariant: the steps hold every piece that is not done exactly once, and a piece only while all shards that it
needs are held. The order of pieces does not change what is written.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lsg.convert.checkpoint import Tensor
from lsg.convert.schedule import Plan

Slab = tuple[int, int]
"""(layer, expert)"""
Part = tuple[str, str]
"""(resident file, shard)"""


@dataclass(frozen=True)
class Needs:
    """Every piece of work and the shards it reads."""

    slabs: Mapping[Slab, frozenset[str]]
    parts: Mapping[Part, frozenset[str]]

    def without(self, slabs: Collection[Slab], parts: Collection[Part]) -> "Needs":
        """What is left to do when these pieces are done."""
        return Needs(
            {slab: shards for slab, shards in self.slabs.items() if slab not in slabs},
            {part: shards for part, shards in self.parts.items() if part not in parts},
        )


@dataclass(frozen=True)
class Step:
    """Get these shards, do these pieces of work, let these shards go."""

    fetch: tuple[str, ...]
    slabs: tuple[Slab, ...]
    parts: tuple[Part, ...]
    release: tuple[str, ...]


def find_needs(plan: Plan, expert_tensors: Collection[str], tensors: Mapping[str, Tensor]) -> Needs:
    """Tell by their names which tensors an expert consists of; what is not clearly its own is everybody's."""
    indices = {layer.source.prefix: layer.source.index for layer in plan.layers}
    own: dict[Slab, set[str]] = defaultdict(set)
    layer_wide: dict[int, set[str]] = defaultdict(set)
    model_wide: set[str] = set()
    for name in expert_tensors:
        shard = tensors[name].shard
        prefix, rest = _split(name, indices)
        if prefix is None:
            model_wide.add(shard)
        elif rest.partition(".")[0].isdecimal():
            own[indices[prefix], int(rest.partition(".")[0])].add(shard)
        else:
            layer_wide[indices[prefix]].add(shard)
    return Needs(
        slabs={
            (index, expert): frozenset(own[index, expert] | layer_wide[index] | model_wide)
            for layer in plan.layers
            for index in [layer.source.index]
            for expert in range(layer.source.num_experts)
        },
        parts={
            (file.name, tensor.shard): frozenset({tensor.shard})
            for file in plan.resident
            for tensor in file.tensors
        },
    )


def all_at_once(needs: Needs) -> list[Step]:
    """One step, for shards that are on the disk and stay there."""
    shards = frozenset[str]().union(*needs.slabs.values(), *needs.parts.values())
    return [Step(tuple(sorted(shards)), tuple(needs.slabs), tuple(needs.parts), ())]


def shard_by_shard(needs: Needs) -> list[Step]:
    """A step for each shard, in order of name; a shard goes with the last piece of work that needs it."""
    shards = sorted(frozenset[str]().union(*needs.slabs.values(), *needs.parts.values()))
    # A piece can be done when the last of its shards has come.
    slabs: dict[str, list[Slab]] = defaultdict(list)
    parts: dict[str, list[Part]] = defaultdict(list)
    goes_with: dict[str, str] = {}
    for slab, needed in needs.slabs.items():
        slabs[max(needed)].append(slab)
    for part, needed in needs.parts.items():
        parts[max(needed)].append(part)
    for needed in (*needs.slabs.values(), *needs.parts.values()):
        for shard in needed:
            goes_with[shard] = max(goes_with.get(shard, ""), max(needed))
    return [
        Step(
            fetch=(shard,),
            slabs=tuple(slabs[shard]),
            parts=tuple(parts[shard]),
            release=tuple(held for held in shards if goes_with[held] == shard),
        )
        for shard in shards
    ]


def peak_bytes(steps: Sequence[Step], sizes: Mapping[str, int]) -> int:
    """The most that shards of these sizes take at any time; those without a size take nothing."""
    peak = held = 0
    for step in steps:
        held += sum(sizes.get(shard, 0) for shard in step.fetch)
        peak = max(peak, held)
        held -= sum(sizes.get(shard, 0) for shard in step.release)
    return peak


def _split(name: str, prefixes: Collection[str]) -> tuple[str | None, str]:
    """The longest of the module prefixes that the name starts with, and what follows it."""
    end = name.rfind(".")
    while end > 0:
        if name[:end] in prefixes:
            return name[:end], name[end + 1 :]
        end = name.rfind(".", 0, end)
    return None, name
