"""What is tried in an emulated machine; each scenario is a process and prints one JSON object.

Invariant: a scenario computes and observes, it does not judge: only the host knows what machine it made
(report.py).
"""

import base64
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import batches
import numpy as np
import observe
import readers

from lsg import LsgError, _core, manifest
from lsg.runtime import host, load, load_plan, placement

MODEL = Path("/guest/model")
HUGE_PAGE = 2 << 20


@dataclass
class Model:
    """A model in memory. ranges: per layer (node, unit_begin, unit_end) as placed; workers: thread ids."""

    engine: _core.Engine
    plan: placement.Placement
    layers: list[manifest.Layer]
    ranges: list[list[load_plan.Range]]
    workers: set[int]
    loaded: load.Loaded
    read_bytes: int


def open_model(mode, *, bind="core", spill=False):
    """Load everything as lsg-serve does, on all physical cores that this process may use."""
    machine = host.observe()
    plan = placement.plan(machine, threads=len(machine.cores), bind=bind)
    before = set(observe.tasks())
    engine = _core.Engine(nodes=plan.workers)
    workers = set(observe.tasks()) - before
    layers = manifest.load(MODEL).layers
    units = [-(-layer.intermediate_size // layer.unit_rows) for layer in layers]
    already_read = observe.read_bytes()
    loaded = load.load_layers(
        engine,
        [
            load.Layer(path_of(layer), layer.activation, plan.memory(0, count), plan.node_units(count))
            for layer, count in zip(layers, units, strict=True)
        ],
        mode=mode,
        spill=spill,
        rooms=load_plan.rooms_of(machine.topology),
        left_bytes=machine.memory_available_bytes,
        say=functools.partial(print, file=sys.stderr),
    )
    ranges = [plan.node_ranges(0, count) for count in units]
    return Model(engine, plan, layers, ranges, workers, loaded, observe.read_bytes() - already_read)


def path_of(layer):
    return MODEL / manifest.DIRECTORY / layer.file


def compute(model, sizes=batches.SIZES):
    """A digest of all layers' outputs for each batch."""
    top_k = manifest.load(MODEL).top_k
    digests = []
    for tokens, share in sizes:
        digest = hashlib.sha256()
        for layer, handle in zip(model.layers, model.loaded.handles, strict=True):
            digest.update(batches.make(layer, tokens, share, top_k).forward(model.engine, handle).tobytes())
        digests.append(digest.hexdigest()[:16])
    return digests


def compute_prompt(model):
    """Of every layer's output for a long prompt, what is compared: float32 in base64."""
    sampled = b""
    for layer, handle in zip(model.layers, model.loaded.handles, strict=True):
        batch = batches.make(layer, *batches.PROMPT, manifest.load(MODEL).top_k)
        sampled += batch.sample(batch.forward(model.engine, handle)).tobytes()
    return base64.b64encode(sampled).decode()


def find(model, mode):
    """(node, address, size) of every unit, and the mappings they lie in.

    map: where the file is mapped. huge: anonymous memory with the same bytes, unit by unit, since those of a
    node need not stay together when it spills. A unit that is nowhere has address 0.
    """
    units, homes = [], {}
    all_mappings = observe.mappings()
    arenas = [m for m in all_mappings if not m.path and m.end - m.begin >= HUGE_PAGE]
    for layer, ranges in zip(model.layers, model.ranges, strict=True):
        path = path_of(layer)
        spec = _core.LayerFile(str(path)).spec
        content = np.memmap(path, np.uint8, "r")
        for node, begin, end in ranges:
            for unit in range(begin, end):
                offset, size = spec.record_offset(unit, 0), spec.unit_bytes
                if mode == "map":
                    mapping, address = find_offset(all_mappings, str(path), offset)
                else:
                    mapping, address = find_content(arenas, content[offset : offset + size])
                units.append((node, address, size))
                if mapping:
                    homes[mapping.begin] = mapping
    return units, list(homes.values())


def find_offset(all_mappings, path, offset):
    for mapping in all_mappings:
        if mapping.path == path and mapping.offset <= offset < mapping.offset + mapping.end - mapping.begin:
            return mapping, mapping.begin + offset - mapping.offset
    return None, 0


def find_content(arenas, content):
    wanted = content[:8].view(np.uint64)[0]
    for mapping in arenas:
        memory = mapping.bytes()
        for page in np.flatnonzero(memory.view(np.uint64)[:: observe.PAGE // 8] == wanted):
            at = int(page) * observe.PAGE
            if np.array_equal(memory[at : at + content.size], content):
                return mapping, mapping.begin + at
    return None, 0


def survey(model, mode):
    """Where pages are, by the kernel, and what the engine itself says."""
    units, homes = find(model, mode)
    nodes = {}
    for node, address, size in units:
        counts = nodes.setdefault(node, Counter())
        if address:
            counts.update(observe.node_of_pages(address, size).tolist())
        else:
            counts["missing"] += size // observe.PAGE
    told = Counter()
    for mapping in homes:
        told.update(mapping.pages)
    own = Counter()
    for part in model.engine.residency():
        own["right"] += part.bytes_on.get(home_nodes()[0] if part.node < 0 else part.node, 0)
        own["total"] += part.bytes
    return {
        "pages": {node: dict(counts) for node, counts in nodes.items()},
        "numa_maps": dict(told),
        "huge_bytes": observe.huge_page_bytes({mapping.begin for mapping in homes}),
        "engine_says": dict(own),
    }


def serve(mode, *, bind="core", spill=False):
    """Load, compute, look."""
    model = open_model(mode, bind=bind, spill=spill)
    digests = compute(model)
    prompt = compute_prompt(model)
    threads = observe.tasks()
    return {
        "mode": model.loaded.choice.mode,
        "teams": [
            {"node": team.node, "cpus": workers.cpus, "cores": team.cores}
            for team, workers in zip(model.plan.teams, model.plan.workers, strict=True)
        ],
        "ranges": model.ranges,
        "workers": [asdict(threads[worker]) for worker in sorted(model.workers)],
        "digests": digests,
        "prompt": prompt,
        "load_seconds": round(model.loaded.seconds, 3),
        "read_bytes": model.read_bytes,
        # After the forward passes: what was right at first must stay so.
        **survey(model, mode),
    }


def bind(how):
    """Workers of a node that may run on all its cores."""
    return serve("huge", bind=how)


def foreign(mode):
    """The page cache already holds the model, on the last node that has memory."""
    with borrowed_node(home_nodes()[-1]):
        cache_model()
    return serve(mode)


def restart(mode):
    """A process before this one has loaded the model and ended."""
    subprocess.run([sys.executable, __file__, f"serve:{mode}"], stdout=subprocess.DEVNULL, check=True)
    return serve(mode)


def cpuset(argument):
    """A container that has one node's cores, and memory of that node only ("node") or of all ("cores")."""
    node = home_nodes()[-1]
    group = Path("/sys/fs/cgroup/container")
    group.mkdir(exist_ok=True)
    cpus = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()
    (group / "cpuset.cpus").write_text(cpus)
    if argument == "node":
        (group / "cpuset.mems").write_text(str(node))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return serve("huge") | {"node": node, "cpus": observe.parse_list(cpus)}


def short(argument):
    """Memory of the last node is taken; "huge" and "map" should refuse, "huge-spill" and "map-spill" not."""
    mode, _, spill = argument.partition("-")
    node = home_nodes()[-1]
    with occupied(node, leave=4 << 20):
        facts = {"node": node, "free_bytes": free_by_node()}
        try:
            return facts | serve(mode, spill=bool(spill))
        except LsgError as error:
            return facts | {"refusal": f"{type(error).__name__}: {error}"}


def reading(argument):
    """Which thread reads each block of the experts first, told by page faults."""
    model = open_model("huge")
    units, homes = find(model, "huge")
    where = [(mapping.begin, mapping.end) for mapping in homes]
    faults = readers.first_readers(where, lambda: compute(model, batches.SIZES[:2]))
    threads = observe.tasks()
    node_of = {cpu: node.index for node in host.observe().topology.nodes for cpu in node.cpus}
    by_node = Counter()
    for node, address, size in units:
        for block in range(-(-address // readers.BLOCK) * readers.BLOCK, address + size, readers.BLOCK):
            if block in faults:
                reader = threads[faults[block]]
                by_node[f"{node_of[reader.allowed[0]]} reads {node}"] += readers.BLOCK // observe.PAGE
    return {"pages_read": dict(by_node)}


def doctor(argument):
    """What `lsg doctor` prints here."""
    command = [sys.executable, "-m", "lsg.cli", "doctor", "--json"]
    return {"doctor": json.loads(subprocess.run(command, capture_output=True, check=True).stdout)}


def home_nodes():
    return list(host.observe().home_nodes)


def free_by_node():
    nodes = host.observe().topology.nodes
    return {n.index: [observe.free_bytes(n.index), observe.reserved_bytes(n.index)] for n in nodes}


def cache_model():
    """Read all layer files by ordinary reads."""
    for path in (MODEL / manifest.DIRECTORY).glob("*.lsgb"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


@contextmanager
def borrowed_node(node):
    """Run on a node's CPUs with its memory alone."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, host.observe().topology.node(node).cpus)
    observe.bind_memory(node)
    yield
    observe.bind_memory(None)
    os.sched_setaffinity(0, usual)


@contextmanager
def occupied(node, *, leave):
    """Another process holds a node's free memory but `leave` bytes and what the kernel keeps for itself."""
    program = (
        f"import sys, observe; observe.bind_memory({node})\n"
        f"taken = observe.free_bytes({node}) - observe.reserved_bytes({node}) - {leave}\n"
        "data = bytearray(taken); print(taken, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parent, **pipes) as hog:
        if not hog.stdout.readline():
            raise MemoryError
        yield
        hog.stdin.close()


if __name__ == "__main__":
    name, _, argument = sys.argv[1].partition(":")
    json.dump(globals()[name](argument), sys.stdout)
