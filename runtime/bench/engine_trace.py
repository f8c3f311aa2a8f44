"""What the engine computed and when, from the ring that it writes (csrc/engine/trace.h).

Invariant: times are nanoseconds since 1970, events are in the order in which they ended.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg import FormatError

MAGIC: Final = b"lsgtrace"
HEADER: Final = np.dtype([("magic", "S8"), ("capacity", "<u8"), ("count", "<u8"), ("reserved", "<u8", 5)])
EVENT: Final = np.dtype([("begin_ns", "<u8"), ("end_ns", "<u8"), ("layer", "<i4"), ("tokens", "<i4")])

Events = npt.NDArray[np.void]


def read(path: Path, since: int = 0) -> Events:
    """Events number `since` and later, as far as the ring still has them. Raises FormatError."""
    header = np.fromfile(path, HEADER, 1)
    if len(header) != 1 or header[0]["magic"] != MAGIC:
        msg = f"{path}: not a trace of lsg's engine; start the server with LSG_TRACE={path.with_suffix('')}"
        raise FormatError(msg)
    capacity, written = int(header[0]["capacity"]), int(header[0]["count"])
    ring = np.fromfile(path, EVENT, capacity, offset=HEADER.itemsize)
    first = max(since, written - capacity, 0)
    return ring[np.arange(first, written) % capacity]


def count(path: Path) -> int:
    """How many events were ever written. Raises FormatError."""
    header = np.fromfile(path, HEADER, 1)
    return int(header[0]["count"]) if len(header) else 0


@dataclass(frozen=True)
class Steps:
    """Decode steps of one batch size, in microseconds.

    step_us: whole steps; engine_us: the engine's part of each. between_layers_us: all together between the
    experts of its layers; between_steps_us: from its last layer's experts to the next step's first.
    """

    step_us: npt.NDArray[np.float64]
    engine_us: npt.NDArray[np.float64]
    between_layers_us: npt.NDArray[np.float64]
    between_steps_us: npt.NDArray[np.float64]


def steps(events: Events, layers: int, tokens: int) -> Steps:
    """Uninterrupted runs of `layers` events of `tokens` tokens, from the first layer to the last."""
    empty = np.empty(0)
    if len(events) == 0:
        return Steps(empty, empty, empty, empty)
    starts = np.flatnonzero((events["layer"] == events["layer"].min()) & (events["tokens"] == tokens))
    starts = starts[starts + layers <= len(events)]
    whole = [
        start for start in starts if (events["tokens"][start : start + layers] == tokens).all()
        and (np.diff(events["layer"][start : start + layers]) > 0).all()
    ]  # fmt: skip
    begins = events["begin_ns"].astype(np.int64)
    # A step lasts until the next one begins, if that follows at once.
    pairs = [(start, following) for start, following in pairwise(whole) if following == start + layers]
    if not pairs:
        return Steps(empty, empty, empty, empty)
    ends = events["end_ns"].astype(np.int64)
    durations = (ends - begins) / 1e3
    step_us = np.array([(begins[following] - begins[start]) / 1e3 for start, following in pairs])
    engine_us = np.array([durations[start:following].sum() for start, following in pairs])
    between_steps_us = np.array([(begins[following] - ends[following - 1]) / 1e3 for _, following in pairs])
    return Steps(step_us, engine_us, step_us - engine_us - between_steps_us, between_steps_us)
