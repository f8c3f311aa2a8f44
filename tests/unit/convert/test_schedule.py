from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsg._core import Dtype, LayerSpec, PanelFormat
from lsg.convert.checkpoint import Tensor
from lsg.convert.schedule import LayerPlan, Plan, plan_resident, writing_threads

ITEM_BYTES = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}


def tensors(shapes):
    return [
        Tensor(str(number), dtype, (size,), "shard", 0, size * ITEM_BYTES[dtype])
        for number, (dtype, size) in enumerate(shapes)
    ]


@given(
    st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.integers(0, 40)), max_size=30),
    st.integers(1, 200),
)
def test_every_tensor_once_aligned_and_files_within_the_limit(shapes, limit):
    given_tensors = tensors(shapes)
    files = plan_resident(given_tensors, limit)
    assert sorted(int(t.name) for file in files for t in file.tensors) == list(range(len(shapes)))
    assert len({file.name for file in files}) == len(files)
    for file in files:
        offset = 0
        for tensor in file.tensors:
            assert offset % ITEM_BYTES[tensor.dtype] == 0
            offset += tensor.nbytes
        assert offset <= limit or sum(tensor.nbytes > 0 for tensor in file.tensors) == 1


def test_names_count_the_files():
    files = plan_resident(tensors([("U8", 10)] * 3), 20)
    assert [file.name for file in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def plan(hidden, intermediate, stored):
    """BF16 experts that stay so."""
    panel = PanelFormat(Dtype.BF16)
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "gated": True}
    panels = {"gate_up": panel, "down": panel}
    nbytes = 3 * hidden * intermediate * 2
    source = SimpleNamespace(**shape, **panels, expert_bytes=nbytes, codes_as_stored=stored)
    return Plan((LayerPlan(source, LayerSpec(layer_index=0, num_experts=4, **shape, **panels)),), ())


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("shape", [(2048, 768), (7168, 2048), (7168, 3072)])
def test_experts_on_their_way_leave_the_program_room_below_a_gibibyte(shape, threads, stored):
    chosen = plan(*shape, stored)
    expert = chosen.layers[0].source.expert_bytes
    slab = expert if stored else 4 * expert
    most = (3 << 28) + 2 * expert
    assert 2 <= chosen.slabs_in_flight(threads) <= threads + writing_threads(threads)
    assert chosen.peak_bytes(threads) == chosen.slabs_in_flight(threads) * slab
    assert chosen.peak_bytes(threads) <= max(most, 2 * slab)
    if (threads + writing_threads(threads)) * slab <= most:
        assert chosen.slabs_in_flight(threads) == threads + writing_threads(threads)
