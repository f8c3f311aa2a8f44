"""Both ways to hold a layer give the same bits, and a load that fails leaves nothing behind."""

import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import RandomLayer, forward, random_layer

from lsg import FormatError, LsgError, _core

MODES = ["map", "huge"]
TOKENS, HIDDEN, EXPERTS, TOP_K = 3, 96, 4, 2
UNITS = 7


def make(path: Path, seed: int = 0, fmt: str = "nvfp4") -> RandomLayer:
    """A layer of 7 units, with an expert table."""
    layer = random_layer(path, fmt=fmt, hidden=HIDDEN, intermediate=200, experts=EXPERTS, seed=seed)
    assert layer.spec.num_units == UNITS
    return layer


def result(engine: _core.Engine, handle: int) -> bytes:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, HIDDEN)).astype(np.float32)
    ids = rng.permuted(np.tile(np.arange(EXPERTS, dtype=np.int32), (TOKENS, 1)), axis=1)[:, :TOP_K]
    weights = rng.uniform(size=(TOKENS, TOP_K)).astype(np.float32)
    return forward(engine, handle, hidden, ids, weights).tobytes()


def status_bytes(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@pytest.fixture
def in_memory_directory():
    """A directory on a file system without a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.mark.parametrize("fmt", ["nvfp4", "fp8-f32-row", "int4-bf16-g32", "bf16-bias"])
def test_a_copy_gives_the_same_bits_as_the_file(tmp_path: Path, fmt: str):
    paths = [tmp_path / f"{seed}.lsgb" for seed in range(3)]
    for seed, path in enumerate(paths):
        make(path, seed, fmt)
    results = []
    for mode in MODES:
        engine = _core.Engine(threads=2)
        handles = [engine.add_layer(str(path), load=mode) for path in paths]
        results.append([result(engine, handle) for handle in handles])
        assert engine.loaded_bytes == sum(
            layer.spec.num_units * layer.spec.unit_bytes for layer in map(opened, paths)
        )
    assert results[0] == results[1]
    assert len(set(results[0])) == len(paths)


def opened(path: Path) -> _core.LayerFile:
    return _core.LayerFile(str(path))


def test_a_file_system_without_a_disk(in_memory_directory: Path):
    path = in_memory_directory / "layer.lsgb"
    make(path)
    engine = _core.Engine(threads=1)
    results = {result(engine, engine.add_layer(str(path), load=mode)) for mode in MODES}
    assert len(results) == 1
    path.unlink()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, UNITS), min_size=2, max_size=6).map(sorted),
    modes=st.lists(st.sampled_from(MODES), min_size=6, max_size=6),
    threads=st.integers(0, 3),
)
def test_any_split_gives_the_same_bits(tmp_path: Path, cuts: list[int], modes: list[str], threads: int):
    path = tmp_path / "layer.lsgb"
    if not path.exists():
        make(path)
    engine = _core.Engine(threads=1)
    whole = engine.add_layer(str(path), unit_begin=cuts[0], unit_end=cuts[-1])
    seen = []
    split = [
        engine.add_layer(
            str(path), load=mode, nodes=[(-1, begin, end) for begin, end in pairwise(cuts)], defer=True
        )
        for mode in modes
    ]
    engine.load(seen.append, threads_per_node=threads)
    assert {result(engine, handle) for handle in split} == {result(engine, whole)}
    spec = opened(path).spec
    total = len(modes) * ((cuts[-1] - cuts[0]) * spec.unit_bytes + spec.table_bytes)
    assert seen[-1] == [(-1, total, total)]


@pytest.mark.parametrize("ranges", [[(0, 3), (4, 7)], [(0, 4), (3, 7)], [(3, 2)], [(-1, 2)], [(0, 8)]])
def test_ranges_that_do_not_fit_are_refused(tmp_path: Path, ranges: list[tuple[int, int]]):
    make(tmp_path / "layer.lsgb")
    with pytest.raises(LsgError, match="in ranges that follow each other"):
        _core.Engine(threads=1).add_layer(
            str(tmp_path / "layer.lsgb"), nodes=[(-1, begin, end) for begin, end in ranges]
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_becomes_shorter_is_refused(tmp_path: Path, mode: str):
    good, cut = tmp_path / "good.lsgb", tmp_path / "cut.lsgb"
    make(good)
    make(cut, seed=1)
    engine = _core.Engine(threads=1)
    kept = engine.add_layer(str(good), load=mode)
    before = result(engine, kept)
    lost = engine.add_layer(str(cut), load=mode, defer=True)
    os.truncate(cut, 2 * 4096)
    with pytest.raises(FormatError, match=r"cut\.lsgb.*became shorter"):
        engine.load()
    with pytest.raises(LsgError, match=f"no layer with handle {lost}"):
        result(engine, lost)
    assert result(engine, kept) == before


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_was_not_loaded_does_not_compute(tmp_path: Path, mode: str):
    make(tmp_path / "layer.lsgb")
    engine = _core.Engine(threads=1)
    handle = engine.add_layer(str(tmp_path / "layer.lsgb"), load=mode, defer=True)
    with pytest.raises(LsgError, match="added but not loaded"):
        result(engine, handle)
    engine.load()
    assert any(result(engine, handle))


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_load_leaves_nothing(tmp_path: Path, mode: str):
    path = tmp_path / "layer.lsgb"
    random_layer(path, fmt="bf16", hidden=512, intermediate=1024, experts=12)
    engine = _core.Engine(threads=1)
    before = status_bytes("RssAnon")
    engine.add_layer(str(path), load=mode, defer=True)

    def interrupt(_: list[tuple[int, int, int]]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.load(interrupt)
    assert engine.loaded_bytes == 0
    assert status_bytes("RssAnon") - before < path.stat().st_size // 4
    engine.load()
    handle = engine.add_layer(str(path), load=mode)
    assert handle == 0


NO_THREADS = """
import resource, sys
from pathlib import Path
from lsg import CapacityError, _core

engine = _core.Engine(threads=1)
engine.add_layer(sys.argv[1], defer=True)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# Less than a thread's stack.
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), resource.RLIM_INFINITY))
try:
    engine.load()
except CapacityError as error:
    print(error)
"""


def test_threads_that_cannot_be_started_are_a_sentence(tmp_path: Path):
    make(tmp_path / "layer.lsgb")
    # A sanitizer's runtime takes more address space than there is.
    environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", NO_THREADS, str(tmp_path / "layer.lsgb")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert "cannot start threads that load experts" in done.stdout, done.stderr


def test_no_other_mode(tmp_path: Path):
    make(tmp_path / "layer.lsgb")
    with pytest.raises(LsgError, match="map or huge, not 'auto'"):
        _core.Engine(threads=1).add_layer(str(tmp_path / "layer.lsgb"), load="auto")


@pytest.mark.parametrize("mode", MODES)
def test_residency_sees_every_byte(tmp_path: Path, mode: str):
    path = tmp_path / "layer.lsgb"
    spec = random_layer(path, fmt="bf16", hidden=512, intermediate=1024, experts=12).spec
    cut = spec.num_units // 3
    engine = _core.Engine(threads=1)
    layer = engine.add_layer(
        str(path), load=mode, nodes=[(allowed_node(), 0, cut), (allowed_node(), cut, spec.num_units)]
    )
    parts = engine.residency()
    ranges = [(part.layer, part.node, part.unit_begin, part.unit_end, part.bytes) for part in parts]
    assert ranges == [
        (layer, allowed_node(), begin, end, (end - begin) * spec.unit_bytes)
        for begin, end in [(0, cut), (cut, spec.num_units)]
    ]
    for part in parts:
        assert part.absent_bytes == 0
        assert sum(part.bytes_on.values()) + part.unknown_bytes == part.bytes
        assert part.huge_bytes <= part.bytes
    # Nothing is brought in by looking.
    engine.add_layer(str(path), load=mode, defer=True)
    assert len(engine.residency()) == 2


@pytest.mark.parametrize("mode", MODES)
def test_pages_that_cannot_be_where_they_should_are_reported(tmp_path: Path, mode: str):
    path = tmp_path / "layer.lsgb"
    spec = random_layer(path, fmt="bf16", hidden=512, intermediate=1024, experts=12).spec
    cut = spec.num_units // 3
    missing = 500
    engine = _core.Engine(threads=1)
    whole = engine.add_layer(str(path))
    nodes = [(allowed_node(), 0, cut), (missing, cut, spec.num_units)]
    split = engine.add_layer(str(path), load=mode, nodes=nodes)
    (part,) = (part for part in engine.residency() if part.node == missing)
    assert missing not in part.bytes_on
    assert sum(part.bytes_on.values()) + part.unknown_bytes == part.bytes
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 512)).astype(np.float32)
    ids, weights = np.arange(12, dtype=np.int32)[None], np.ones((1, 12), np.float32)
    assert (
        forward(engine, split, hidden, ids, weights).tobytes()
        == forward(engine, whole, hidden, ids, weights).tobytes()
    )


def allowed_node() -> int:
    """A NUMA node with memory that this process may use."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("Mems_allowed_list"))
    return int(line.split()[1].replace(",", "-").split("-")[0])


def test_locked_layers_count_as_locked(tmp_path: Path):
    path = tmp_path / "layer.lsgb"
    make(path)
    engine = _core.Engine(threads=1)
    for mode in MODES:
        engine.add_layer(str(path), load=mode, defer=True)
    before = status_bytes("VmLck")
    engine.load(lock=True)
    # Whole pages of both, or none where the limit on locked memory is too low.
    assert status_bytes("VmLck") - before == engine.locked_bytes
    spec = opened(path).spec
    assert engine.locked_bytes in (0, 2 * (UNITS * spec.unit_bytes + spec.table_bytes))


def test_what_a_file_tells_before_it_is_loaded(tmp_path: Path, in_memory_directory: Path):
    path = tmp_path / "layer.lsgb"
    random_layer(path, fmt="bf16", hidden=512, intermediate=1024, experts=12)
    file = opened(path)
    if file.lives_in_memory:
        pytest.skip("temporary files have no disk here")
    engine = _core.Engine(threads=1)
    engine.add_layer(str(path), load="huge")
    # A copy leaves nothing in the page cache but what looking at the file maps; mincore tells the owner.
    assert file.cached_bytes() < file.spec.file_bytes // 4
    huge = file.maps_huge()
    assert file.cached_bytes() >= 2 << 20
    engine = _core.Engine(threads=1)
    engine.add_layer(str(path), load="map")
    assert file.cached_bytes() == file.spec.file_bytes
    (part,) = engine.residency()
    assert (part.huge_bytes > part.bytes // 2) == huge
    small = in_memory_directory / "layer.lsgb"
    make(small)
    assert opened(small).lives_in_memory
    assert not opened(small).maps_huge()
