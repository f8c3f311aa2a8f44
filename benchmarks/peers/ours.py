"""MoE layers in lsg: answers each number of tokens on the standard input as side.py wants it.

    python ours.py SHAPE FORMAT THREADS WORKING_SET_GB LOAD SECONDS

Beside the layer's times: how fast the same threads read memory just after.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from lsg._core import Engine
from lsg.runtime import host, placement
from lsg.runtime.bench.layers import SPIN_US, Layers
from lsg.runtime.bench.limits import Probe
from lsg.runtime.bench.shapes import SHAPES, layer_spec

MEMORY_SECONDS = 0.02


def main() -> None:
    """Measure and print."""
    shape_name, dtype, threads, working_set, load, seconds = sys.argv[1:]
    shape = SHAPES[shape_name]
    placed = placement.plan(host.observe(), threads=int(threads))
    engine = Engine(nodes=placed.workers, spin_us=SPIN_US)
    with tempfile.TemporaryDirectory() as scratch:
        spec = layer_spec(shape, dtype)
        layers = Layers(engine, placed, spec, shape.top_k, 1e9 * float(working_set), Path(scratch), load)
    probe = Probe(int(threads), placed.cpus, engine.isa)
    for line in sys.stdin:
        calls = layers.measure(int(line), float(seconds))
        times = [call.seconds for call in calls]
        cell = {
            "batch": int(line),
            "seconds": statistics.median(times),
            "low": min(times),
            "high": max(times),
            "bytes": statistics.mean(call.nbytes for call in calls),
            "memory_bytes_per_s": probe.measure((), MEMORY_SECONDS).bytes_per_s,
        }
        print(json.dumps(cell), flush=True)


if __name__ == "__main__":
    main()
