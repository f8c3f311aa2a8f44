"""Every source format with every value of --experts: what the table promises, against the oracle."""

import re

import numpy as np
import pytest
from converting import make_target, parts
from target_oracle import COLS, ROWS, SOURCES, decode, nearest_half, random_matrix

from lsg import CheckpointError
from lsg._core import Dtype, LayerSpec, PanelFormat, ScaleDtype, pack_expert, unpack_expert
from lsg.convert import targets
from lsg.convert.targets import NAMES
from lsg.convert.targets.pairs import WAYS, Way

LETTERS = {"K": Way.KEPT, "R": Way.ROUNDED, "Q": Way.QUANTISED, "-": Way.REFUSED}
LINES = [re.split(r"  +", line.strip()) for line in targets.__doc__.splitlines()]
DOCUMENTED = {cells[0]: cells[1:] for cells in LINES if cells[0] in WAYS}
ONE = {ScaleDtype.F32: 1.0, ScaleDtype.F16: 0x3C00, ScaleDtype.BF16: 0x3F80, ScaleDtype.E8M0: 127}
PANELS = {
    "int4": PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32),
    "int8": PanelFormat(Dtype.INT8, ScaleDtype.BF16, scale_k=32),
    "fp8": PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, scale_rows=32, scale_k=128),
    "mxfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.E8M0, scale_k=32),
    "nvfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True),
}
# Above the relative squared errors of each format on the heaviest tails and coarsest sources here.
WORST = {"int4": 0.02, "int8": 1e-4, "fp8": 1e-3, "mxfp4": 0.02, "nvfp4": 0.01}


def pairs(*ways):
    return [
        pytest.param(source, name, id=f"{source}-to-{name}")
        for source, (family, _) in SOURCES.items()
        for name, way in zip(NAMES, WAYS[family], strict=True)
        if way in ways
    ]


def converted(source, name, search=True):
    panel = SOURCES[source][1]
    matrix = random_matrix(np.random.default_rng(7), panel)
    target = make_target(name, search=search)
    return matrix, panel, target.convert(matrix, panel), target.panel(panel)


def squares(stored, exact):
    return float(((stored - exact) ** 2).sum()), float((exact**2).sum())


def test_the_documented_table_is_the_one_in_force():
    assert tuple(next(cells[1:] for cells in LINES if cells[0] == "source")) == NAMES
    assert {f: tuple(LETTERS[c[0]] for c in cells) for f, cells in DOCUMENTED.items()} == WAYS
    searching = {NAMES[i] for cells in DOCUMENTED.values() for i, cell in enumerate(cells) if cell == "Q s"}
    assert searching == targets.SEARCHING
    assert {family for family, _ in SOURCES.values()} == set(WAYS)


@pytest.mark.parametrize(("source", "name"), pairs(Way.KEPT))
def test_kept_is_the_very_matrix(source, name):
    matrix, panel, result, made = converted(source, name)
    assert made == panel
    assert parts(result.matrix) == parts(matrix)
    assert result.error is None


@pytest.mark.parametrize(("source", "name"), pairs(Way.ROUNDED))
def test_rounded_once_to_the_nearest(source, name):
    matrix, panel, result, made = converted(source, name)
    dtype = Dtype.BF16 if name == "bf16" else Dtype.F16
    assert made == PanelFormat(dtype, bias=panel.bias)
    exact = decode(matrix, panel)
    stored = decode(result.matrix, made)
    np.testing.assert_array_equal(stored, nearest_half(exact, dtype))
    assert result.error == pytest.approx(squares(stored, exact), rel=1e-12)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param(source, name, id=f"{source}-to-{name}")
        for source, (family, _) in SOURCES.items()
        for name, cell in zip(NAMES, DOCUMENTED[family], strict=True)
        if cell == "R ="
    ],
)
def test_exact_when_scales_are_powers_of_two(source, name):
    panel = SOURCES[source][1]
    matrix = random_matrix(np.random.default_rng(9), panel)
    matrix.scales[:] = ONE[panel.scale_dtype]
    result = make_target(name, search=True).convert(matrix, panel)
    half = PanelFormat(Dtype.BF16 if name == "bf16" else Dtype.F16)
    np.testing.assert_array_equal(decode(result.matrix, half), decode(matrix, panel))
    assert result.error[0] == 0


@pytest.mark.parametrize(("source", "name"), pairs(Way.QUANTISED))
def test_quantised_says_its_error(source, name):
    matrix, panel, result, made = converted(source, name)
    assert made.bias == panel.bias
    same = {"dtype", "scale_dtype", "scale_rows", "scale_k", "zero_point", "global_scale"}
    assert {f: getattr(made, f) for f in same} == {f: getattr(PANELS[name], f) for f in same}
    error, norm = squares(decode(result.matrix, made), decode(matrix, panel))
    # 32 float32 terms a group are added, and the groups in float64.
    assert result.error == pytest.approx((error, norm), rel=64 * 2.0**-24)
    assert 0 < error < WORST[name] * norm


@pytest.mark.parametrize(("source", "name"), pairs(Way.KEPT, Way.ROUNDED, Way.QUANTISED))
def test_bias_is_untouched_and_the_result_packs(source, name):
    matrix, panel, result, made = converted(source, name)
    if panel.bias:
        np.testing.assert_array_equal(result.matrix.bias, matrix.bias)
    assert (result.matrix.bias is None) != panel.bias
    target = make_target(name, search=True)
    down = target.convert(random_matrix(np.random.default_rng(8), panel, COLS, ROWS), panel).matrix
    spec = LayerSpec(
        layer_index=0,
        num_experts=1,
        hidden_size=COLS,
        intermediate_size=ROWS,
        gated=False,
        gate_up=made,
        down=made,
    )
    records = pack_expert(spec, None, result.matrix, down)
    table = np.zeros(spec.table_bytes, np.uint8)
    _, up, _ = unpack_expert(spec, records, table, 0)
    np.testing.assert_array_equal(up.codes, result.matrix.codes)


@pytest.mark.parametrize(("source", "name"), pairs(Way.REFUSED))
def test_refused_with_what_to_do(source, name):
    family, panel = SOURCES[source]
    target = make_target(name, search=True)
    sentence = f"stored as {family} are not converted to {name}, .* --experts keep"
    with pytest.raises(CheckpointError, match=sentence):
        target.panel(panel)
    with pytest.raises(CheckpointError, match=sentence):
        target.convert(random_matrix(np.random.default_rng(7), panel), panel)
