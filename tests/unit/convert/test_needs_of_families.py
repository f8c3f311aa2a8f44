"""Whatever a checkpoint's layout and format, reading an expert touches only the shards it is said to need.

Otherwise --stream would miss a shard, and a shard downloaded again would leave an old expert behind.
"""

from dataclasses import replace

import pytest

from checkpoints.families import CASES, make
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.schedule import make_plan
from lsg.convert.sources import find_experts
from lsg.convert.steps import find_needs
from lsg.convert.targets import Target


@pytest.mark.parametrize(("model", "name"), CASES)
def test_reading_an_expert_touches_what_it_needs(model, name, tmp_path, monkeypatch):
    make(tmp_path, model, name)
    touched = set()
    real = Checkpoint.read_into

    def read_into(self, tensor, start, buffer):
        touched.add(tensor.name)
        real(self, tensor, start, buffer)

    with Checkpoint(tmp_path) as checkpoint:
        source = find_experts(checkpoint, MoeGeometry.from_config(checkpoint.config, "config.json"))
        plan = make_plan(source, Target("keep", search=False), checkpoint.tensors.values())
        # As if every tensor lay in a shard of its own.
        alone = {n: replace(tensor, shard=n) for n, tensor in checkpoint.tensors.items()}
        needs = find_needs(plan, source.tensor_names, alone)
        monkeypatch.setattr(Checkpoint, "read_into", read_into)
        for layer in source.layers:
            for expert in range(layer.num_experts):
                touched.clear()
                source.read(layer, expert)
                assert touched <= needs.slabs[layer.index, expert]
