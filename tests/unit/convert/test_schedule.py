from hypothesis import given
from hypothesis import strategies as st

from lsg.convert.checkpoint import Tensor
from lsg.convert.schedule import plan_resident

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
