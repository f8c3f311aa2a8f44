"""The engine's ring of events as the core writes it, and decode steps found in it."""

import time

import numpy as np
import pytest
from kernels.layers import forward, random_layer

from lsg import FormatError
from lsg._core import Engine
from lsg.runtime.bench import engine_trace
from lsg.runtime.bench.engine_trace import EVENT, HEADER, MAGIC

LAYERS = 3


def ring(path, capacity, events):
    """A file as the core leaves it after so many events."""
    header, slots = np.zeros(1, HEADER), np.zeros(capacity, EVENT)
    header["magic"], header["capacity"], header["count"] = MAGIC, capacity, len(events)
    for number, event in enumerate(events):
        slots[number % capacity] = event
    path.write_bytes(header.tobytes() + slots.tobytes())
    return path


def events(*rows):
    """Events from (begin in µs, microseconds, layer, tokens)."""
    return np.array(
        [(1000 * begin, 1000 * (begin + long), layer, tokens) for begin, long, layer, tokens in rows], EVENT
    )


def test_what_the_core_writes(tmp_path):
    engine = Engine(threads=1)
    for index in range(LAYERS):
        layer = random_layer(
            tmp_path / f"{index}", fmt="bf16", hidden=64, intermediate=48, experts=4, seed=index
        )
        engine.add_layer(str(layer.path))
    file = tmp_path / "trace"
    engine.trace_to(str(file))
    assert engine_trace.count(file) == 0
    before = time.time_ns()
    for tokens in (1, 5):
        for layer in range(LAYERS):
            hidden, ids = np.ones((tokens, 64), np.float32), np.zeros((tokens, 2), np.int32)
            forward(engine, layer, hidden, ids, np.ones((tokens, 2), np.float32))
    found = engine_trace.read(file)
    assert engine_trace.count(file) == len(found) == 2 * LAYERS
    assert found["layer"].tolist() == [0, 1, 2] * 2
    assert found["tokens"].tolist() == [1] * LAYERS + [5] * LAYERS
    times = np.column_stack([found["begin_ns"], found["end_ns"]]).ravel()
    assert (np.diff(times.astype(np.int64)) >= 0).all()
    assert before <= times[0]
    assert times[-1] <= time.time_ns()
    assert (engine_trace.read(file, since=4) == found[4:]).all()


@pytest.mark.parametrize("since", [0, 3, 9, 11, 12])
def test_a_ring_that_went_round_keeps_the_last(tmp_path, since):
    written = events(*((10 * n, 5, n % 4, 1) for n in range(12)))
    found = engine_trace.read(ring(tmp_path / "trace", 5, written), since)
    assert (found == written[max(since, 7) :]).all()


@pytest.mark.parametrize("content", [b"", b"lsgtrace", b"x" * 64])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "trace.0"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"not a trace .*LSG_TRACE={tmp_path / 'trace'}"):
        engine_trace.read(path)


def test_steps_are_whole_uninterrupted_and_followed():
    found = events(
        *((100 + 10 * layer, 4 + layer, layer, 2) for layer in range(3)),
        *((150 + 10 * layer, 1, layer, 2) for layer in range(3)),
        # A prompt comes between: the step before it has no end.
        *((200 + 10 * layer, 9, layer, 64) for layer in range(3)),
        *((300 + 10 * layer, 2, layer, 2) for layer in range(3)),
        *((340 + 10 * layer, 3, layer, 2) for layer in range(2)),
    )
    steps = engine_trace.steps(found, layers=3, tokens=2)
    assert steps.step_us.tolist() == [50.0]
    assert steps.engine_us.tolist() == [15.0]
    # Layers begin every 10 µs and take 4, 5, 6; the next step begins 24 µs after the last one's end.
    assert steps.between_layers_us.tolist() == [11.0]
    assert steps.between_steps_us.tolist() == [24.0]
    assert len(engine_trace.steps(found, layers=3, tokens=7).step_us) == 0


def test_no_events_are_no_steps():
    assert len(engine_trace.steps(events(), layers=3, tokens=1).step_us) == 0
