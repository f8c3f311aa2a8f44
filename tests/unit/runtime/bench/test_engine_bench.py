"""`lsg bench engine`: real layers, percentages of its own limits, and nothing left behind."""

import json
from pathlib import Path

import machines
import numpy as np
import pytest
from click.testing import CliRunner

from lsg._core import Engine, Instruction, Isa
from lsg.cli import main
from lsg.runtime import placement
from lsg.runtime.bench import limits
from lsg.runtime.bench.layers import Call, Layers
from lsg.runtime.bench.limits import FLOAT, INT8, Limits
from lsg.runtime.bench.shapes import FORMATS, SHAPES, Shape, layer_spec
from lsg.runtime.bench.sweep import Slice, make_cell
from lsg.runtime.bench.synthetic import LayerWriter

SMALL = Shape("small", 64, 96, 5, 2)
QUICK = ["--shape", "A", "--experts", "9", "--working-set", "0.001", "--seconds", "0.001", "--threads", "1"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["bench", "engine", *arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("format", FORMATS)
def test_every_expert_is_there_and_computes(tmp_path: Path, format: str):
    """All experts have the same values: each one's output must be the first one's, and be something."""
    spec = layer_spec(SMALL, format)
    engine = Engine(threads=1)
    with LayerWriter(spec, 2).written(tmp_path / "layer.lsgb") as path:
        layer = engine.add_layer(str(path))
    assert not list(tmp_path.iterdir())
    hidden = np.ones((spec.num_experts, spec.hidden_size), np.float32)
    out = np.full_like(hidden, np.nan)
    ids = np.arange(spec.num_experts, dtype=np.int32)[:, None].copy()
    weights = np.ones((spec.num_experts, 1), np.float32)
    pointers = (array.ctypes.data for array in (hidden, ids, weights, out))
    engine.forward(layer, *pointers, tokens=spec.num_experts, top_k=1, dtype="f32")
    assert np.isfinite(out).all()
    assert np.abs(out[0]).max() > 0
    assert (out == out[0]).all()


def test_a_layer_has_the_models_experts_unless_they_are_too_many():
    assert layer_spec(SHAPES["A"], "bf16").num_experts == 128
    cut = layer_spec(SHAPES["D"], "bf16")
    assert 8 < cut.num_experts < 384
    assert 2.3e9 < cut.file_bytes < 2.6e9


def test_layers_take_turns_and_tokens_choose_distinct_experts(tmp_path: Path):
    spec = layer_spec(SMALL, "int4")
    placed = placement.plan(machines.host([1]))
    layers = Layers(Engine(threads=1), placed, spec, 2, 3 * spec.file_bytes, tmp_path, "map")
    assert layers.count == 3
    calls = layers.measure(1, 0.001)
    one = spec.num_units * spec.record_bytes
    assert {call.nbytes for call in calls} == {2 * one}
    assert all(call.nbytes <= 5 * one for call in layers.measure(64, 0.001))
    assert layers.operations(3) == 3 * 2 * (2 + 2 + 2) * 64 * 96


def test_the_limit_is_what_the_level_could_reach():
    found = Limits(1.0, {Instruction.FMA_YMM: 3.0, Instruction.FMA_ZMM: 2.0, Instruction.MADDUBS_YMM: 9.0})
    assert found.peak(FLOAT) == (Instruction.FMA_YMM, 3.0)
    assert found.peak(INT8) == (Instruction.MADDUBS_YMM, 9.0)
    assert limits.Probe(1, [], Isa.AVX2).measure(seconds=0.001).peaks.keys() == {
        Instruction.FMA_YMM,
        Instruction.MADDUBS_YMM,
    }


def test_percentages_are_of_the_limits_beside_them():
    """Memory twice as fast in the second slice, and the calls too: the percentage is the same in both."""
    peak = Instruction.FMA_YMM
    slices = [
        Slice([Call(2.0, 100), Call(2.0, 100)], Limits(80.0, {peak: 1000.0})),
        Slice([Call(1.0, 100)], Limits(160.0, {peak: 1000.0})),
    ]
    facts = {"shape": "A", "model": "m", "format": "int4", "num_experts": 8, "layers": 2}
    cell = make_cell(facts, 1, False, peak, 500, slices)
    assert cell.calls == 3
    assert cell.percent_of_memory == pytest.approx(62.5)
    assert cell.percent_of_arithmetic == pytest.approx(25.0)
    assert cell.bound == "memory"
    assert (cell.seconds.median, cell.bytes_per_s.median) == (2.0, 50.0)
    assert (cell.memory_bytes_per_s, cell.peak_operations_per_s) == (80.0, 1000.0)


def test_a_changing_machine_is_noticed():
    peak = Instruction.FMA_YMM
    then = Limits(80.0, {peak: 1000.0})
    assert limits.steady(then, Limits(90.0, {peak: 900.0}))
    assert not limits.steady(then, Limits(100.0, {peak: 1000.0}))
    assert not limits.steady(then, Limits(80.0, {peak: 800.0}))


def test_the_best_of_two_measurements_decides():
    ymm, zmm = Instruction.FMA_YMM, Instruction.FMA_ZMM
    disturbed = Limits(90.0, {ymm: 500.0, zmm: 400.0})
    found = limits.best(disturbed, Limits(80.0, {ymm: 450.0, zmm: 900.0}))
    assert found == Limits(90.0, {ymm: 500.0, zmm: 900.0})
    assert found.peak(FLOAT)[0] == zmm


def test_cells_are_measured_and_saved(tmp_path: Path):
    scratch, saved = tmp_path / "scratch", tmp_path / "found.json"
    scratch.mkdir()
    output = run(
        *(*QUICK, "--format", "int4", "--format", "bf16", "--batch", "1", "--batch", "32"),
        *("--isa", "avx2", "--scratch", str(scratch), "--save", str(saved)),
    )
    assert not list(scratch.iterdir())
    result = json.loads(saved.read_text())
    assert [(cell["format"], cell["batch"]) for cell in result["cells"]] == [
        ("int4", 1),
        ("int4", 32),
        ("bf16", 1),
        ("bf16", 32),
    ]
    for cell in result["cells"]:
        assert cell["instruction"] == ("MADDUBS_YMM" if cell["format"] == "int4" else "FMA_YMM")
        larger = max(("memory", "arithmetic"), key=lambda limit: cell[f"percent_of_{limit}"])
        assert cell["bound"] == larger
        assert f"{cell['operations_per_s'] / 1e9:.0f}" in output
    assert output.count("A (Qwen3-30B-A3B)") == 4


def test_plot_is_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "roofline.png"
    run(*QUICK, "--format", "int4", "--batch", "1", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        (["--threads", "100000"], {}, "100000 threads"),
        ([], {"LSG_ISA": "scalar"}, "no arithmetic limit to compare with"),
        (["--scratch", "/proc"], {}, "/proc"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(monkeypatch, arguments, environ, sentence):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    output = run(*QUICK, "--format", "int4", "--batch", "1", *arguments, code=1)
    assert sentence in output
    assert "Traceback" not in output
    assert output.count("lsg bench engine:") == 1
