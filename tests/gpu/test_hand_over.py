"""The hand-over's protocol on a stand-in for the driver: Engine.forward's own bits, and never a hang."""

import threading

import numpy as np
import pytest
from kernels.layers import forward, random_layer

from lsg import CompatError, LsgError, _core

HIDDEN, EXPERTS, TOP_K, LAYERS = 64, 4, 2, 3
WAYS = ["hostfunc", "memops", "kernels"]

pytestmark = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("layers")
    engine = _core.Engine(threads=2)
    for index in range(LAYERS):
        layer = random_layer(
            directory / f"{index}", fmt="bf16", hidden=HIDDEN, intermediate=48, experts=EXPERTS, seed=index
        )
        assert engine.add_layer(str(layer.path)) == index
    return engine


@pytest.fixture
def hand_over(engine, library, driver, way):
    before = driver.FakePinned()
    made = _core.HandOver(engine, way=way, tokens=4, hidden_size=HIDDEN, top_k=TOP_K, library=str(library))
    yield made
    made.stop()
    del made
    assert before <= driver.FakePinned()


class Batch:
    """A batch's tensors in what the stand-in calls GPU memory."""

    def __init__(self, tokens, seed=0):
        self.random = np.random.default_rng(seed)
        self.hidden = np.empty((tokens, HIDDEN), np.float32)
        self.ids = np.empty((tokens, TOP_K), np.int32)
        self.weights = np.empty((tokens, TOP_K), np.float32)
        self.outs = [np.full((tokens, HIDDEN), np.nan, np.float32) for _ in range(LAYERS)]
        self.refill()

    def refill(self):
        """Other values in the same places, as sglang does between replays."""
        self.hidden[:] = self.random.normal(size=self.hidden.shape)
        self.ids[:] = self.random.integers(-1, EXPERTS, self.ids.shape)
        self.weights[:] = self.random.uniform(size=self.weights.shape)

    def submit(self, hand_over, layer, stream, **changes):
        tokens, top_k = self.ids.shape
        arguments = {
            "stream": stream.address,
            "hidden": self.hidden.ctypes.data,
            "topk_ids": self.ids.ctypes.data,
            "topk_weights": self.weights.ctypes.data,
            "out": self.outs[layer].ctypes.data,
            "tokens": tokens,
            "top_k": top_k,
            "hidden_size": HIDDEN,
            "dtype": "f32",
        }
        hand_over.submit(layer, **arguments | changes)

    def submit_all(self, hand_over, stream):
        for layer in range(LAYERS):
            self.submit(hand_over, layer, stream)

    def check(self, engine):
        for layer, out in enumerate(self.outs):
            expected = forward(engine, layer, self.hidden, self.ids, self.weights)
            np.testing.assert_array_equal(out, expected)


@pytest.fixture
def stream(streams):
    return streams()


def test_replays_of_several_graphs(hand_over, engine, stream):
    """Graphs of several batch sizes, in any order, with calls outside of graphs between them."""
    batches = [Batch(tokens, seed=tokens) for tokens in (4, 3, 1)]
    graphs = [stream.capture(lambda s, b=batch: b.submit_all(hand_over, s)) for batch in batches]
    order = np.random.default_rng(0).integers(0, len(batches) + 1, 200)
    alone = Batch(2)
    for choice in order:
        batch = (*batches, alone)[choice]
        batch.refill()
        if batch is alone:
            batch.submit_all(hand_over, stream)
        else:
            stream.replay(graphs[choice])
        assert stream.wait()
        batch.check(engine)


def test_one_layer_replayed_without_a_pause(hand_over, engine, stream):
    """The same job again and again: a flag left from the last time would let the GPU read too early."""
    batch = Batch(2)
    outs = [np.full_like(batch.outs[0], np.nan) for _ in range(200)]
    for out in outs:
        batch.submit(hand_over, 1, stream, out=out.ctypes.data)
    assert stream.wait()
    expected = forward(engine, 1, batch.hidden, batch.ids, batch.weights)
    for out in outs:
        np.testing.assert_array_equal(out, expected)


def test_growing_leaves_captured_graphs_alone(hand_over, engine, stream, driver):
    small, large = Batch(4), Batch(64)
    first = stream.capture(lambda s: small.submit_all(hand_over, s))
    with pytest.raises(LsgError, match="64 tokens is to be captured"):
        large.submit_all(hand_over, stream)
    hand_over.reserve(tokens=64, hidden_size=HIDDEN, top_k=TOP_K)
    pinned = driver.FakePinned()
    second = stream.capture(lambda s: large.submit_all(hand_over, s))
    assert driver.FakePinned() == pinned, "memory was pinned during a capture"
    for batch, graph in ((large, second), (small, first), (large, second)):
        batch.refill()
        stream.replay(graph)
        assert stream.wait()
        batch.check(engine)


def test_capturing_again(hand_over, engine, stream, driver):
    """sglang drops its graphs and captures new ones when it has flushed its memory."""
    for _ in range(3):
        batch = Batch(4)
        graph = stream.capture(lambda s, b=batch: b.submit_all(hand_over, s))
        for _ in range(2):
            batch.refill()
            stream.replay(graph)
            assert stream.wait()
            batch.check(engine)
        driver.FakeDrop(graph)


def test_capture_is_silent(hand_over, stream, way):
    """Nothing runs while a graph is captured; kernels need the fewest nodes."""
    batch = Batch(4)
    graph = stream.capture(lambda s: batch.submit_all(hand_over, s))
    assert stream.wait(0)
    assert all(np.isnan(out).all() for out in batch.outs)
    nodes = {"hostfunc": 5, "memops": 7, "kernels": 2}
    assert stream.driver.FakeGraphSize(graph) == LAYERS * nodes[way]


def test_rows_that_are_no_vectors_are_copied(engine, library, stream, tmp_path, way):
    layer = random_layer(tmp_path / "odd", fmt="bf16", hidden=33, intermediate=48, experts=EXPERTS)
    engine = _core.Engine(threads=1)
    engine.add_layer(str(layer.path))
    hand_over = _core.HandOver(engine, way=way, tokens=4, hidden_size=33, top_k=TOP_K, library=str(library))
    batch = Batch(3)
    batch.hidden, out = batch.hidden[:, :33].copy(), np.full((3, 33), np.nan, np.float32)
    batch.submit(hand_over, 0, stream, hidden_size=33, out=out.ctypes.data)
    assert stream.wait()
    np.testing.assert_array_equal(out, forward(engine, 0, batch.hidden, batch.ids, batch.weights))


def test_idle_for_longer_than_the_dispatcher_spins(hand_over, engine, stream):
    batch = Batch(1)
    graph = stream.capture(lambda s: batch.submit_all(hand_over, s))
    for pause in (0.005, 0.25):
        threading.Event().wait(pause)
        batch.refill()
        stream.replay(graph)
        assert stream.wait()
        batch.check(engine)


def test_a_failure_is_told_and_the_gpu_is_released(hand_over, engine, stream):
    batch = Batch(2)
    batch.ids[1, 0] = EXPERTS
    told = []
    watch = threading.Thread(target=lambda: told.append(hand_over.wait_for_failure()))
    watch.start()
    batch.submit_all(hand_over, stream)
    watch.join(20)
    assert f"expert {EXPERTS}" in told[0]
    # Until somebody stops it, or two seconds are over, nothing can be made of the output.
    hand_over.stop()
    assert stream.wait()
    assert all(np.isnan(out).all() for out in batch.outs)


def test_stopping_ends_the_watch(hand_over):
    told = []
    watch = threading.Thread(target=lambda: told.append(hand_over.wait_for_failure()))
    watch.start()
    hand_over.stop()
    watch.join(20)
    assert told == [None]


def test_closing_ends_the_answers_and_the_watch(hand_over, engine, stream):
    batch = Batch(2)
    batch.submit_all(hand_over, stream)
    assert stream.wait()
    hand_over.close()
    assert hand_over.wait_for_failure() is None
    hand_over.close()
    batch.check(engine)


def test_buffers_grow_by_factors(hand_over, driver):
    """Each prompt a little longer than the last: the old buffers stay, so there must be few."""
    before = driver.FakePinned()
    for tokens in range(5, 513):
        hand_over.reserve(tokens=tokens, hidden_size=HIDDEN, top_k=TOP_K)
    # From 4 to 512 tokens: 8, 16 … 512, four pieces of memory each.
    assert driver.FakePinned() - before == 4 * 7


def test_pinned_memory_that_cannot_be_had(engine, library, driver, way):
    driver.FakeFailNextAllocation()
    with pytest.raises(LsgError, match=r"pin memory .*made to fail"):
        _core.HandOver(engine, way=way, tokens=1, hidden_size=HIDDEN, top_k=TOP_K, library=str(library))


def test_no_driver(engine, way, tmp_path):
    with pytest.raises(CompatError, match=r"no CUDA driver: .*; install NVIDIA's driver"):
        _core.HandOver(
            engine, way=way, tokens=1, hidden_size=HIDDEN, top_k=TOP_K, library=str(tmp_path / "libcuda.so.1")
        )
