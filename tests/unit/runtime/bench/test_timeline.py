"""GPU and engine on one line of time: what counts as work, and what is idle."""

import gzip
import json

import numpy as np
import pytest

from lsg import LsgError
from lsg.runtime.bench import timeline
from lsg.runtime.bench.engine_trace import EVENT

BASE_NS = 1_700_000_000_000_000_000


def kernel(name, ts, dur, cat="kernel", stream=7):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"stream": stream}}


# Attention, the wait for the engine, a copy on another stream that begins before the wait is over.
GPU = [
    kernel("attention", 0.0, 10.0),
    kernel("lsg_receive", 10.0, 30.0),
    kernel("copy", 35.0, 10.0, "gpu_memcpy", 8),
    kernel("norm", 45.0, 5.0),
]
NOISE = [
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1.0, "dur": 2.0},
    {"ph": "i", "cat": "kernel", "name": "mark", "ts": 1.0},
]


@pytest.fixture(params=["trace.json", "trace.json.gz"])
def profile(request, tmp_path):
    """A torch profile, plain or packed."""
    path = tmp_path / request.param
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        json.dump({"baseTimeNanoseconds": BASE_NS, "traceEvents": GPU + NOISE}, file)
    return path


def engine(*spans):
    """Engine events from (begin, end) in µs after BASE_NS."""
    rows = [(BASE_NS + 1000 * begin, BASE_NS + 1000 * end, n, 1) for n, (begin, end) in enumerate(spans)]
    return np.array(rows, EVENT)


def test_both_are_on_one_clock(profile):
    trace = timeline.merge(timeline.gpu_events(profile), engine((12, 30), (46, 50), (49, 60)))
    named = {event["name"]: event for event in trace["traceEvents"]}
    # The last one ends after the GPU was last seen.
    assert set(named) == {
        "attention",
        "lsg_receive",
        "copy",
        "norm",
        "layer 0, 1 tokens",
        "layer 1, 1 tokens",
    }
    # Microseconds since 1970 in a double are good to a quarter.
    assert named["layer 0, 1 tokens"]["ts"] == pytest.approx(12, abs=0.5)
    assert named["layer 0, 1 tokens"]["dur"] == pytest.approx(18, abs=0.5)
    assert named["attention"]["ts"] == 0
    assert named["copy"]["tid"] == "stream 8"
    json.dumps(trace)


def test_waiting_for_the_engine_is_no_work(profile):
    trace = timeline.merge(timeline.gpu_events(profile), engine())
    assert timeline.spans(trace, timeline.GPU_PID) == [(0.0, 10.0), (35.0, 50.0)]


def test_idle_shares():
    def event(pid, begin, end, layer=0):
        return {"pid": pid, "ts": begin, "dur": end - begin, "name": "x", "args": {"layer": layer}}

    gpu, own = timeline.GPU_PID, timeline.ENGINE_PID
    # A prompt comes first, and is not decoding.
    events = [event(own, -90, -80), event(own, -50, -20, layer=1)]
    events += [event(own, 10, 30), event(own, 60, 110, layer=1)]
    events += [event(gpu, 0, 20), event(gpu, 40, 50), event(gpu, 50, 60), event(gpu, 100, 200)]
    shares = timeline.idle_shares({"traceEvents": events})
    # Of 10 … 110: the engine works 70; the GPU 10 … 20, 40 … 60 and 100 … 110; neither in 30 … 40.
    assert shares == pytest.approx({"gpu": 0.6, "engine": 0.3, "both": 0.1})


def test_between_layers():
    """Two gaps inside a step; the one to the next step, and a gap without a kernel, do not count."""

    def event(pid, begin, end, name="gemm", **args):
        return {"pid": pid, "ts": begin, "dur": end - begin, "name": name, "args": args}

    gpu, own = timeline.GPU_PID, timeline.ENGINE_PID
    # Engine: layers 0, 1, 2, then the next step's 0, then its 1 with nothing on the GPU before.
    events = [event(own, begin, begin + 100, layer=n % 3) for n, begin in enumerate((0, 150, 310, 500))]
    events += [event(own, 610, 700, layer=1)]
    events += [event(gpu, 90, 103, "lsg_receive"), event(gpu, 104, 110), event(gpu, 109, 115)]
    events += [event(gpu, 120, 140), event(gpu, 141, 148, "lsg_send")]
    events += [event(gpu, 256, 300), event(gpu, 301, 308, "lsg_send"), event(gpu, 420, 490)]
    found = timeline.between_layers({"traceEvents": events})
    # First gap: 100 … 150, kernels 104 … 115 and 120 … 140; second: 250 … 310, one kernel 256 … 300.
    expected = {"gap": 55, "to_gpu": 5, "model": 40, "model_busy": 37.5, "kernels": 2, "to_engine": 10}
    assert found == pytest.approx(expected)
    assert timeline.between_layers({"traceEvents": events[:1]}) == {}


def test_gpu_work_under_the_engine():
    def event(pid, begin, end, name="gemm"):
        return {"pid": pid, "ts": begin, "dur": end - begin, "name": name, "args": {"layer": 0}}

    gpu, own = timeline.GPU_PID, timeline.ENGINE_PID
    # The first is the prompt's.
    events = [event(own, -50, -40), event(own, 0, 100), event(own, 150, 200)]
    # 30 µs under the engine, of them 10 twice at a time; 20 beside it.
    events += [event(gpu, 10, 30), event(gpu, 20, 40), event(gpu, 110, 130)]
    # Waiting is no work, and nobody knows what the engine does after its last event.
    events += [event(gpu, 40, 99, "lsg_receive"), event(gpu, 200, 300)]
    assert timeline.under_the_engine({"traceEvents": events}) == pytest.approx(0.6)


def test_nothing_seen_is_an_error(profile):
    with pytest.raises(LsgError, match="no work on the GPU"):
        timeline.merge([], engine((1, 2)))
    trace = timeline.merge(timeline.gpu_events(profile), engine())
    with pytest.raises(LsgError, match="the engine decoded nothing"):
        timeline.idle_shares(trace)


def test_the_picture(profile, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the picture")
    trace = timeline.merge(timeline.gpu_events(profile), engine((12, 30), (46, 50)))
    for event in trace["traceEvents"]:
        if event["pid"] == timeline.ENGINE_PID:
            # Two steps of one layer.
            event["args"]["layer"] = 0
    timeline.draw(trace, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
