import io
import json

import pytest

from lsg import CapacityError, _core
from lsg.runtime import console
from lsg.runtime.load import Layer, load_layers
from lsg.runtime.load_plan import Room
from lsg.runtime.model import open_model
from lsg.runtime.placement import ANY_NODE


@pytest.fixture
def layers(repacked):
    model = open_model(repacked)
    return [
        Layer(
            model.path_of(layer),
            layer.activation,
            [(ANY_NODE, 0, layer.intermediate_size // layer.unit_rows)],
        )
        for layer in model.manifest.layers
    ]


def load(layers, mode="auto", **options):
    said = []
    engine = _core.Engine(threads=1)
    arguments = {"spill": False, "rooms": {}, "left_bytes": None, "say": said.append} | options
    return engine, load_layers(engine, layers, mode=mode, **arguments), said


@pytest.mark.parametrize("mode", ["auto", "map", "huge"])
def test_a_load_says_how_and_what_came_of_it(layers, mode):
    engine, loaded, said = load(layers, mode)
    assert loaded.handles == [0, 1]
    assert mode in ("auto", loaded.choice.mode)
    assert loaded.bytes == engine.loaded_bytes == sum(node.bytes for node in loaded.nodes)
    assert said[0].startswith(f"load {loaded.choice.mode}: ")
    assert said[1].startswith("2 expert layers, ")
    (line,) = said[2:]
    assert line.startswith("any node: ")
    facts = json.loads(json.dumps(loaded.facts()))
    assert (facts["mode"], facts["bytes"]) == (loaded.choice.mode, loaded.bytes)
    assert [node["node"] for node in facts["nodes"]] == [ANY_NODE]
    more = load_layers(engine, layers[:1], mode=mode, spill=False, rooms={}, left_bytes=None, say=said.append)
    assert more.handles == [2]
    assert more.bytes == loaded.nodes[0].bytes // 2, "each load tells about its own layers"


def test_what_cannot_fit_is_refused_before_it_is_read(layers):
    with pytest.raises(CapacityError, match="available to this process"):
        load(layers, left_bytes=1000)
    on_node = [Layer(layer.path, layer.activation, [(0, *layer.ranges[0][1:])]) for layer in layers]
    with pytest.raises(CapacityError, match="node 0 needs"):
        load(on_node, rooms={0: Room(1000)})


def test_lines_tell_how_far_a_load_is(monkeypatch):
    said = []
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.LoadProgress(said.append) as progress:
        progress([(0, 0, 8 * 10**9), (3, 5 * 10**9, 10**10)])
        progress([(-1, 10**9, 10**9)])
    first, second = said
    assert first.startswith("loading: node 0 0 bytes of 8 GB, 0 bytes/s, waiting; node 3 5 GB of 10 GB, ")
    assert first.endswith(" left")
    assert second.startswith("loading: experts 1 GB of 1 GB, ")


def test_json_lines_tell_how_far_a_load_is(monkeypatch, capsys):
    said = []
    with console.LoadProgress(said.append, json_process=1) as progress:
        progress([(0, 4, 8), (3, 5, 5)])
        monkeypatch.setattr(console, "JSON_SECONDS", 0.0)
        progress([(0, 6, 8), (3, 5, 5)])
        monkeypatch.setattr(console, "JSON_SECONDS", 60.0)
        progress([(0, 7, 8), (3, 5, 5)])
        progress([(0, 8, 8), (3, 5, 5)])
    assert not said
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["process"]) == ("load", 1)
    assert first["nodes"] == [
        {"node": 0, "done_bytes": 6, "total_bytes": 8},
        {"node": 3, "done_bytes": 5, "total_bytes": 5},
    ]
    assert [node["done_bytes"] for node in last["nodes"]] == [8, 5]


def test_a_bar_for_each_node_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    terminal = console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "_stderr", terminal)
    said = []
    with console.LoadProgress(said.append) as progress:
        progress([(0, 0, 8), (3, 5, 10)])
        progress([(0, 8, 8), (3, 9, 10)])
    assert not said
    assert all(name in screen.getvalue() for name in ("node 0", "node 3", "8/8 bytes", "9/10 bytes"))


def test_a_quick_load_says_nothing_meanwhile():
    said = []
    with console.LoadProgress(said.append) as progress:
        progress([(0, 10, 10)])
    assert not said
