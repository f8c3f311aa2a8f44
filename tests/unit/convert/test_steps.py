from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import make_checkpoint
from lsg.convert.checkpoint import Checkpoint, Tensor
from lsg.convert.geometry import MoeGeometry
from lsg.convert.schedule import LayerPlan, Plan, make_plan
from lsg.convert.sources import find_experts
from lsg.convert.steps import Needs, all_at_once, find_needs, peak_bytes, shard_by_shard
from lsg.convert.targets import Target

SHARDS = ["a", "b", "c", "d", "e"]
SIZES = {shard: 1 << number for number, shard in enumerate(SHARDS)}
NEEDS = st.builds(
    lambda slabs, parts: Needs(
        {(0, number): shards for number, shards in enumerate(slabs)},
        {("file", shard): frozenset({shard}) for shard in parts},
    ),
    st.lists(st.frozensets(st.sampled_from(SHARDS), min_size=1)),
    st.sets(st.sampled_from(SHARDS)),
)


def check_steps(steps, needs, sizes):
    """Every piece once, while its shards are held; every shard once; the most that was held."""
    held, seen_shards, done_slabs, done_parts, most = set(), [], [], [], 0
    for step in steps:
        held |= set(step.fetch)
        seen_shards += step.fetch
        most = max(most, sum(sizes[shard] for shard in held))
        assert all(needs.slabs[slab] <= held for slab in step.slabs)
        assert all(needs.parts[part] <= held for part in step.parts)
        done_slabs += step.slabs
        done_parts += step.parts
        held -= set(step.release)
    assert sorted(done_slabs) == sorted(needs.slabs)
    assert sorted(done_parts) == sorted(needs.parts)
    assert len(seen_shards) == len(set(seen_shards))
    return held, most


@given(NEEDS)
def test_shard_by_shard(needs):
    steps = shard_by_shard(needs)
    held, most = check_steps(steps, needs, SIZES)
    assert held == set()
    assert most == peak_bytes(steps, SIZES)
    # A shard stays exactly until the last piece that needs it.
    for number, step in enumerate(steps):
        later = [piece for after in steps[number + 1 :] for piece in after.slabs]
        for shard in step.release:
            assert not any(shard in needs.slabs[slab] for slab in later)
            assert any(
                shard in shards
                for shards in [*map(needs.slabs.get, step.slabs), *map(needs.parts.get, step.parts)]
            )


@given(NEEDS)
def test_all_at_once(needs):
    held, _ = check_steps(all_at_once(needs), needs, SIZES)
    assert held == frozenset().union(*needs.slabs.values(), *needs.parts.values())


@given(NEEDS, st.data())
def test_what_is_done_needs_no_shard(needs, data):
    slabs = data.draw(st.sets(st.sampled_from(sorted(needs.slabs)))) if needs.slabs else set()
    left = needs.without(slabs, needs.parts)
    check_steps(shard_by_shard(left), left, SIZES)
    assert left.slabs.keys() == needs.slabs.keys() - slabs
    fetched = {shard for step in shard_by_shard(left) for shard in step.fetch}
    assert fetched == frozenset().union(*left.slabs.values())


def test_an_expert_needs_the_shards_of_its_own_tensors(tmp_path):
    with Checkpoint(make_checkpoint(tmp_path, shards=7)) as checkpoint:
        geometry = MoeGeometry.from_config(checkpoint.config, "config.json")
        source = find_experts(checkpoint, geometry)
        plan = make_plan(source, Target("bf16", search=False), checkpoint.tensors.values())
        needs = find_needs(plan, source.tensor_names, checkpoint.tensors)
        for (layer, expert), shards in needs.slabs.items():
            prefix = f"model.layers.{layer}.mlp.experts.{expert}."
            assert shards == {t.shard for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
        assert any(len(shards) == 2 for shards in needs.slabs.values())
        # What has passed through in the order of the steps is never the whole checkpoint.
        sizes = {shard.name: shard.nbytes for shard in checkpoint.shards}
        assert peak_bytes(shard_by_shard(needs), sizes) < sum(sizes.values())


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("m.0.experts.gate_up_proj", {(0, 0), (0, 1)}),
        ("m.0.experts.1.gate_proj.weight", {(0, 1)}),
        ("m.0.router_bias_of_experts", {(0, 0), (0, 1), (7, 0), (7, 1)}),
        ("m.7.experts.down_proj_bias", {(7, 0), (7, 1)}),
    ],
)
def test_whose_a_tensor_is(pristine, name, whose):
    with Checkpoint(pristine) as checkpoint:
        geometry = MoeGeometry.from_config(checkpoint.config, "config.json")
        layer = find_experts(checkpoint, geometry).layers[0]
    plan = Plan(
        tuple(
            LayerPlan(_renamed(layer, index, f"m.{index}.experts"), None)  # type: ignore[arg-type]
            for index in (0, 7)
        ),
        (),
    )
    tensors = {name: Tensor(name, "BF16", (1,), "shard", 0, 2)}
    needs = find_needs(plan, [name], tensors)
    assert {slab for slab, shards in needs.slabs.items() if shards} == whose


def _renamed(layer, index, prefix):

    return replace(layer, index=index, prefix=prefix, num_experts=2)
