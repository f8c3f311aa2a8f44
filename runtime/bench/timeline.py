"""The GPU's and the engine's work on one line of time: a Chrome trace, idle shares and a picture.

Invariant: an interval counts as GPU work only if the GPU does something of use in it; waiting for the engine
is idle time.
"""

import gzip
import json
import statistics
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from lsg import LsgError
from lsg.runtime.bench.engine_trace import Events

GPU_CATEGORIES: Final = ("kernel", "gpu_memcpy", "gpu_memset")
WAITING_KERNELS: Final = ("lsg_receive",)
OUR_KERNELS: Final = ("lsg_send", "lsg_receive")
ENGINE_PID: Final = "lsg engine"
GPU_PID: Final = "GPU"
PICTURE_US: Final = 4000.0

Span = tuple[float, float]


def gpu_events(profile: Path) -> list[dict[str, Any]]:
    """The GPU's events of a torch profile, with `ts` in microseconds since 1970."""
    opener = gzip.open if profile.suffix == ".gz" else open
    with opener(profile, "rt") as file:
        content = json.load(file)
    base_us = int(content.get("baseTimeNanoseconds", 0)) / 1e3
    return [
        {**event, "ts": float(event["ts"]) + base_us}
        for event in content["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in GPU_CATEGORIES
    ]


def merge(gpu: list[dict[str, Any]], engine: Events) -> dict[str, Any]:
    """A Chrome trace of both, cut to where the GPU was observed. Raises LsgError when nothing was."""
    if not gpu:
        msg = "the profile shows no work on the GPU, so there is no timeline to draw"
        raise LsgError(msg)
    begin = min(event["ts"] for event in gpu)
    end = max(event["ts"] + event["dur"] for event in gpu)
    events = [
        {
            "name": event["name"],
            "ph": "X",
            "ts": event["ts"] - begin,
            "dur": event["dur"],
            "pid": GPU_PID,
            "tid": f"stream {event.get('args', {}).get('stream', event.get('tid'))}",
        }
        for event in gpu
    ]
    for row in engine:
        start_us, stop_us = row["begin_ns"] / 1e3, row["end_ns"] / 1e3
        if begin <= start_us and stop_us <= end:
            events.append(
                {
                    "name": f"layer {row['layer']}, {row['tokens']} tokens",
                    "ph": "X",
                    "ts": start_us - begin,
                    "dur": stop_us - start_us,
                    "pid": ENGINE_PID,
                    "tid": "experts",
                    "args": {"layer": int(row["layer"])},
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def spans(trace: dict[str, Any], pid: str) -> list[Span]:
    """Where one of the two was at work: disjoint and rising."""
    return _joined(
        (event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if event["pid"] == pid and not event["name"].startswith(WAITING_KERNELS)
    )


def _joined(found: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in sorted(found):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def between_layers(trace: dict[str, Any]) -> dict[str, float]:
    """What passes from one layer's experts to the next one's of the same step, medians in microseconds.

    gap: from the engine's end to its next start. to_gpu: until the model's first kernel starts. model: from
    there to the end of the model's last kernel; model_busy: of that, with a kernel running; kernels: how
    many. to_engine: from there to the engine's start. Empty when no layer follows another.
    """
    engine = sorted(_events(trace, ENGINE_PID), key=lambda event: event["ts"])
    kernels = [event for event in _events(trace, GPU_PID) if not event["name"].startswith(OUR_KERNELS)]
    kernels.sort(key=lambda event: event["ts"])
    starts = [event["ts"] for event in kernels]
    rows: list[dict[str, float]] = []
    for one, following in pairwise(engine):
        begin, end = one["ts"] + one["dur"], following["ts"]
        inside = kernels[bisect_left(starts, begin) : bisect_left(starts, end)]
        if following["args"]["layer"] <= one["args"]["layer"] or not inside:
            continue
        busy = _joined((event["ts"], event["ts"] + event["dur"]) for event in inside)
        rows.append(
            {
                "gap": end - begin,
                "to_gpu": busy[0][0] - begin,
                "model": busy[-1][1] - busy[0][0],
                "model_busy": sum(stop - start for start, stop in busy),
                "kernels": len(inside),
                "to_engine": end - busy[-1][1],
            }
        )
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]} if rows else {}


def under_the_engine(trace: dict[str, Any]) -> float:
    """How much of the GPU's work runs while the engine computes, as a share of it."""
    engine, gpu = spans(trace, ENGINE_PID), spans(trace, GPU_PID)
    begin, end = _decoding(trace)
    work = [(max(start, begin), min(stop, end)) for start, stop in gpu if start < end and stop > begin]
    total = sum(stop - start for start, stop in work)
    both = sum(stop - start for start, stop in [*engine, *work])
    both -= sum(stop - start for start, stop in _joined([*engine, *work]))
    return both / total if total else 0.0


def _events(trace: dict[str, Any], pid: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["pid"] == pid]


def _decoded(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The engine's events of decode steps: all but the first pass through the layers, which is the prompt's.

    Raises LsgError when there are none.
    """
    engine = sorted(_events(trace, ENGINE_PID), key=lambda event: event["ts"])
    layers = [event["args"]["layer"] for event in engine]
    again = next((n for n, (one, other) in enumerate(pairwise(layers), 1) if other <= one), None)
    if again is None:
        msg = "the engine decoded nothing while the GPU was observed"
        raise LsgError(msg)
    return engine[again:]


def _decoding(trace: dict[str, Any]) -> Span:
    """From the first decode step's first experts to the last one's last."""
    decoded = _decoded(trace)
    return decoded[0]["ts"], decoded[-1]["ts"] + decoded[-1]["dur"]


def idle_shares(trace: dict[str, Any]) -> dict[str, float]:
    """The share of time, from the first decode step to the last, in which each did nothing."""
    engine, gpu = spans(trace, ENGINE_PID), spans(trace, GPU_PID)
    begin, end = _decoding(trace)

    def idle(found: list[Span]) -> float:
        busy = sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in found)
        return 1 - busy / (end - begin)

    return {"gpu": idle(gpu), "engine": idle(engine), "both": idle(_joined([*engine, *gpu]))}


def draw(trace: dict[str, Any], path: Path) -> None:
    """A picture of PICTURE_US microseconds in the middle of decoding. Raises LsgError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        msg = "a picture of the timeline needs matplotlib: pip install 'lsg[plot]'"
        raise LsgError(msg) from None
    engine, gpu = spans(trace, ENGINE_PID), spans(trace, GPU_PID)
    decoded = _decoded(trace)
    middle = decoded[len(decoded) // 2]["ts"]
    begin, end = middle - PICTURE_US / 2, middle + PICTURE_US / 2
    shares = idle_shares(trace)
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, found, colour) in enumerate(
        ((GPU_PID, gpu, "tab:green"), (ENGINE_PID, engine, "tab:blue"))
    ):
        bars = [(start - begin, stop - start) for start, stop in found if stop > begin and start < end]
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour)
        axes.text(0, row + 0.45, f"{name}", va="bottom")
    axes.set_yticks([])
    axes.set_xlim(0, PICTURE_US)
    axes.set_xlabel("µs")
    axes.set_title(f"idle: GPU {shares['gpu']:.0%}, engine {shares['engine']:.0%}, both {shares['both']:.0%}")
    figure.savefig(path, dpi=120)
