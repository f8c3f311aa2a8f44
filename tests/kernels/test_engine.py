"""The engine against the float64 oracle, on every ISA level this processor has."""

from pathlib import Path

import numpy as np
import pytest
from layers import (
    FORMATS,
    RandomLayer,
    Rounding,
    activation,
    bf16_bits,
    bf16_value,
    forward,
    has_coarse_int8,
    oracle,
    random_layer,
    random_matrix,
    round_bf16,
)

from lsg import LsgError, _core

ISAS = [isa.name.lower() for isa in _core.isa_levels() if _core.kernel_isa(isa.name.lower()) == isa]
# Weights that meet int8 activations as integers.
INT8_WEIGHTS = (_core.Dtype.INT4, _core.Dtype.INT8, _core.Dtype.FP4_E2M1)
# H and I: multiples of everything; tails on both sides of a tile, a group and a block; smaller than one tile.
SHAPES = [(128, 96), (80, 48), (97, 33), (65, 31), (31, 129), (8, 5)]
# Around the kernels' token block (4) and the fused limit (128).
TOKENS = [1, 2, 3, 4, 5, 16, 33, 129]


def routing(rng: np.random.Generator, tokens: int, experts: int, top_k: int):
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int32)
    return ids, rng.uniform(0.1, 1, size=(tokens, top_k)).astype(np.float32)


FUSED_TOKENS = 128


def multiplies_bf16(isa: _core.Isa, dtype: _core.Dtype) -> bool:
    """Whether a level rounds inputs to bf16, for few tokens too, unless floats are asked for."""
    exact = (_core.Dtype.FP8_E4M3, _core.Dtype.FP8_E5M2, _core.Dtype.BF16)
    return isa == _core.Isa.BF16 and dtype in exact


def rounds_prompts(isa: _core.Isa, dtype: _core.Dtype) -> bool:
    """Whether a level's prompts round inputs, and weights: to bf16, or to int8 in groups of 128."""
    return isa == _core.Isa.AMX or (isa == _core.Isa.BF16 and dtype not in INT8_WEIGHTS)


def rounding(
    panel: _core.PanelFormat,
    engine: _core.Engine,
    handle: int,
    tokens: int,
    top_k: int,
    activations: str = "int8",
) -> Rounding:
    """What the oracle must know of a layer's panel and a batch, on an engine with such activations."""
    dtype = panel.dtype
    int8 = activations == "int8"
    if rounds_prompts(engine.isa, dtype) and not engine.in_one_pass(handle, tokens, top_k):
        coarse = int8 and engine.isa == _core.Isa.AMX and has_coarse_int8(panel)
        return Rounding.COARSE_INT8 if coarse else Rounding.BF16
    if int8 and multiplies_bf16(engine.isa, dtype):
        return Rounding.BF16_INPUTS
    return Rounding.INT8 if int8 and dtype in INT8_WEIGHTS else Rounding.NONE


def check(
    layer: RandomLayer,
    engine: _core.Engine,
    handle: int,
    tokens: int,
    activations: str = "int8",
    **activation,
) -> None:
    rng = np.random.default_rng(tokens)
    hidden = rng.normal(size=(tokens, layer.spec.hidden_size)).astype(np.float32)
    ids, weights = routing(rng, tokens, layer.spec.num_experts, 3)
    got = forward(engine, handle, hidden, ids, weights)
    how, how_down = (
        rounding(panel, engine, handle, tokens, 3, activations)
        for panel in (layer.spec.gate_up, layer.spec.down)
    )
    want, bound = oracle(layer, hidden, ids, weights, how, down_rounding=how_down, **activation)
    excess = np.abs(got - want) / np.maximum(bound, 1e-30)
    assert np.isfinite(got).all()
    assert excess.max() <= 1, f"error {np.abs(got - want).max():.3g} is {excess.max():.3g} of the bound"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_shapes_and_batches(tmp_path: Path, fmt: str, activations: str, isa: str):
    engine = _core.Engine(threads=2, isa=isa, activations=activations)
    for hidden, intermediate in SHAPES:
        layer = random_layer(tmp_path / f"{hidden}.lsgb", fmt=fmt, hidden=hidden, intermediate=intermediate)
        handle = engine.add_layer(str(layer.path))
        for tokens in TOKENS:
            check(layer, engine, handle, tokens, activations)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize(
    ("fmt", "down_fmt"),
    [
        ("int4-bf16-g32", "bf16"),
        ("bf16", "int4-f16-g128-zero"),
        ("fp8-f32-32x128", "int8-bf16-g32"),
        ("int8-f32-row-zero", "fp8-f32-row"),
        ("nvfp4", "e5m2-bf16-g32"),
        ("int4-f16-g128-zero-order", "mxfp4-bias"),
    ],
)
def test_down_may_have_a_format_of_its_own(
    tmp_path: Path, fmt: str, down_fmt: str, activations: str, isa: str
):
    engine = _core.Engine(threads=2, isa=isa, activations=activations)
    layer = random_layer(tmp_path / "d.lsgb", fmt=fmt, down_fmt=down_fmt, hidden=97, intermediate=150)
    handle = engine.add_layer(str(layer.path))
    for tokens in (1, 4, 16, 129):
        check(layer, engine, handle, tokens, activations)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", list(_core.Activation))
def test_activations(tmp_path: Path, kind: _core.Activation, gated: bool, isa: str):
    layer = random_layer(tmp_path / "a.lsgb", fmt="bf16", hidden=96, intermediate=80, gated=gated)
    engine = _core.Engine(threads=1, isa=isa, activations="float")
    act = _core.Activation
    params = {"alpha": 1.0, "limit": 0.0}
    if kind in (act.SWIGLU_CLAMPED, act.SILU_CLAMPED, act.SWIGLUOAI, act.SITU):
        if not gated:
            pytest.skip("these activations exist with a gate only")
        params = {"alpha": 1.702, "limit": 0.7}
    handle = engine.add_layer(str(layer.path), activation=kind, **params)
    for tokens in (1, 5, 140):
        check(layer, engine, handle, tokens, "float", kind=kind, **params)


@pytest.mark.parametrize("fmt", ["fp8-f32-32x128", "e5m2-f32-row", "bf16"])
def test_inputs_are_rounded_to_bf16_where_the_level_multiplies_it(tmp_path: Path, fmt: str):
    layer = random_layer(tmp_path / "r.lsgb", fmt=fmt, hidden=200, intermediate=130)
    rng = np.random.default_rng(4)
    # At most four tokens an expert take one pass on every level.
    hidden = rng.normal(size=(5, 200)).astype(np.float32)
    # Some lie halfway between two numbers of bf16.
    bits = hidden.view(np.uint32)
    bits[:, ::5] = bits[:, ::5] & 0xFFFF0000 | 0x8000
    ids, weights = routing(rng, 5, 4, 3)
    for isa in ISAS:
        for activations in ("int8", "float"):
            engine = _core.Engine(threads=1, isa=isa, activations=activations)
            handle = engine.add_layer(str(layer.path))
            got = forward(engine, handle, hidden, ids, weights)
            of_rounded = forward(engine, handle, round_bf16(hidden).astype(np.float32), ids, weights)
            rounded = activations == "int8" and multiplies_bf16(engine.isa, layer.spec.gate_up.dtype)
            assert (got.tobytes() == of_rounded.tobytes()) == rounded


@pytest.mark.parametrize("isa", ISAS)
def test_activations_are_rounded_to_bf16_where_the_level_multiplies_it(tmp_path: Path, isa: str):
    layer = identity_layer(tmp_path / "r.lsgb")
    rng = np.random.default_rng(4)
    hidden = round_bf16(rng.normal(size=(4, 64)).astype(np.float32)).astype(np.float32)
    ids, weights = np.zeros((4, 1), np.int32), np.ones((4, 1), np.float32)
    found = {}
    for activations in ("int8", "float"):
        engine = _core.Engine(threads=1, isa=isa, activations=activations)
        handle = engine.add_layer(str(layer.path))
        found[activations] = forward(engine, handle, hidden, ids, weights)
    want = round_bf16(found["float"]) if multiplies_bf16(engine.isa, _core.Dtype.BF16) else found["float"]
    assert (found["int8"] == want).all()
    assert (round_bf16(found["float"]) != found["float"]).any()


def identity_layer(path: Path) -> RandomLayer:
    """One expert whose gate, up and down are the identity: what comes out is the activation alone."""
    layer = random_layer(path, fmt="bf16", hidden=64, intermediate=64, experts=1)
    one = _core.Matrix(np.where(np.eye(64), 0x3F80, 0).astype(np.uint16))
    replace_records(layer, one, one, one)
    return layer


def replace_records(layer: RandomLayer, gate: _core.Matrix, up: _core.Matrix, down: _core.Matrix) -> None:
    """Those of its first expert, in the file; what its table holds stays."""
    data = bytearray(layer.path.read_bytes())
    for unit, record in enumerate(_core.pack_expert(layer.spec, gate, up, down)):
        at = layer.spec.record_offset(unit, 0)
        data[at : at + len(record)] = record.tobytes()
    layer.path.write_bytes(data)


@pytest.mark.skipif("amx" not in ISAS, reason="other levels keep fp8 or round it to bf16")
@pytest.mark.parametrize("fmt", ["fp8-f32-32x128", "fp8-e8m0-32x32", "e5m2-bf16-g32"])
def test_prompts_round_each_fp8_weight_to_a_step_of_its_own_output(tmp_path: Path, fmt: str):
    panel = FORMATS[fmt]
    layer = random_layer(tmp_path / "f.lsgb", fmt=fmt, hidden=128, intermediate=128, experts=1)
    # gate and up are the identity and each token has one input, so it has one neuron: one column of down.
    one = 0x3C if panel.dtype == _core.Dtype.FP8_E5M2 else 0x38
    blocks = (128 // panel.scale_rows, 128 // panel.scale_k)
    ones = {
        _core.ScaleDtype.F32: np.ones(blocks, np.float32),
        _core.ScaleDtype.BF16: np.full(blocks, 0x3F80, np.uint16),
        _core.ScaleDtype.E8M0: np.full(blocks, 127, np.uint8),
    }[panel.scale_dtype]
    identity = _core.Matrix(np.where(np.eye(128), one, 0).astype(np.uint8), ones)
    down = random_matrix(np.random.default_rng(5), panel, 128, 128)
    replace_records(layer, identity, identity, down.packed)
    engine = _core.Engine(threads=1, isa="amx")
    handle = engine.add_layer(str(layer.path))
    hidden = 2 * np.eye(128, dtype=np.float32)
    ids, weights = np.zeros((128, 1), np.int32), np.ones((128, 1), np.float32)
    assert not engine.in_one_pass(handle, 128, 1)
    got = forward(engine, handle, hidden, ids, weights).T * (1 + np.exp(-2.0)) / 4
    error = np.abs(got - down.value)
    assert down.coarse is not None
    coarse = down.coarse.max(axis=1, keepdims=True)
    assert (error <= coarse).all()
    # Nor are they finer, so the bound is that of what is tested.
    assert (error > coarse / 4).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("isa", ISAS)
def test_situ_keeps_its_precision_at_every_size(tmp_path: Path, isa: str):
    layer = identity_layer(tmp_path / "s.lsgb")
    engine = _core.Engine(threads=1, isa=isa, activations="float")
    magnitudes = np.logspace(-15, 2, 64 * 63).astype(np.float32)
    x = np.concatenate([magnitudes, -magnitudes, np.zeros(128, np.float32)]).reshape(-1, 64)
    ids, weights = np.zeros((len(x), 1), np.int32), np.ones((len(x), 1), np.float32)
    for alpha, limit in [(4.0, 25.0), (1.0, 0.0)]:
        kind = _core.Activation.SITU
        handle = engine.add_layer(str(layer.path), activation=kind, alpha=alpha, limit=limit)
        # In batches that every level computes in floats.
        parts = [slice(at, at + 4) for at in range(0, len(x), 4)]
        got = np.concatenate([forward(engine, handle, x[i], ids[i], weights[i]) for i in parts])
        want = activation(kind, x.astype(np.float64), x.astype(np.float64), alpha, limit)
        # The oracle's 96 units, and the clamp of Exp's argument: e^-87 and less is as good as nothing.
        assert (np.abs(got - want) <= 96 * 2.0**-24 * np.abs(want) + 1e-30).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("unit_rows", [32, 64, 128])
@pytest.mark.parametrize(
    "fmt",
    [
        *("int4-f16-g128-zero", "int4-f16-g128-zero-order", "fp8-f32-32x128", "fp8-f32-row"),
        *("e5m2-f32-row", "nvfp4", "bf16"),
    ],
)
def test_unit_sizes(tmp_path: Path, fmt: str, unit_rows: int, isa: str):
    layer = random_layer(tmp_path / "u.lsgb", fmt=fmt, hidden=160, intermediate=200, unit_rows=unit_rows)
    engine = _core.Engine(threads=2, isa=isa)
    handle = engine.add_layer(str(layer.path))
    for tokens in (1, 6, 135):
        check(layer, engine, handle, tokens)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize(
    "fmt",
    [
        *("int4-bf16-g32", "int4-f16-g128-zero-order", "int8-bf16-g32", "fp8-f32-32x128"),
        *("mxfp4-bias", "nvfp4", "bf16", "bf16-order", "f16"),
    ],
)
def test_same_bits_on_every_level_and_thread_count(tmp_path: Path, fmt: str, activations: str):
    layer = random_layer(tmp_path / "b.lsgb", fmt=fmt, hidden=200, intermediate=130, experts=8)
    rng = np.random.default_rng(1)
    for tokens in (1, 3, 20, 150):
        hidden = rng.normal(size=(tokens, 200)).astype(np.float32)
        ids, weights = routing(rng, tokens, 8, 4)
        # Levels that round have an order of their own.
        results: dict[str, set[bytes]] = {}
        for isa in ISAS:
            for threads in (1, 2, 5):
                engine = _core.Engine(threads=threads, isa=isa, activations=activations)
                handle = engine.add_layer(str(layer.path))
                dtype = layer.spec.gate_up.dtype
                own = rounds_prompts(engine.isa, dtype) and not engine.in_one_pass(handle, tokens, 4)
                own |= activations == "int8" and multiplies_bf16(engine.isa, dtype)
                got = forward(engine, handle, hidden, ids, weights).tobytes()
                results.setdefault(isa if own else "", set()).add(got)
        assert all(len(same) == 1 for same in results.values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["int4-bf16-g32", "bf16"])
def test_prompts_have_the_same_bits_whether_a_worker_has_all_ranges_of_experts(
    tmp_path: Path, fmt: str, isa: str
):
    # Nine blocks of outputs: one worker takes whole blocks, three take a range of experts each time.
    layer = random_layer(tmp_path / "w.lsgb", fmt=fmt, hidden=520, intermediate=70, experts=30)
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(150, 520)).astype(np.float32)
    ids, weights = routing(rng, 150, 30, 4)
    # Nobody asks for some of the ranges.
    ids[(ids > 3) & (ids < 11)] = -1
    engines = [_core.Engine(threads=threads, isa=isa) for threads in (1, 3)]
    handles = [engine.add_layer(str(layer.path)) for engine in engines]
    assert not engines[0].in_one_pass(handles[0], 150, 4)
    whole, ranges = (
        forward(engine, handle, hidden, ids, weights) for engine, handle in zip(engines, handles, strict=True)
    )
    assert whole.tobytes() == ranges.tobytes()
    for engine, handle in zip(engines, handles, strict=True):
        check(layer, engine, handle, 150)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["int4-bf16-g32", "fp8-f32-32x128", "bf16-order"])
def test_a_token_alone_and_in_a_batch_has_the_same_bits(tmp_path: Path, fmt: str, isa: str):
    layer = random_layer(tmp_path / "a.lsgb", fmt=fmt, hidden=200, intermediate=130, experts=40)
    engine = _core.Engine(threads=3, isa=isa)
    handle = engine.add_layer(str(layer.path))
    rng = np.random.default_rng(3)
    most = max(tokens for tokens in range(FUSED_TOKENS + 1) if engine.in_one_pass(handle, tokens, 8))
    # Products of the matrix unit, or of bf16, take over from four tokens an expert on.
    assert most == (20 if rounds_prompts(engine.isa, layer.spec.gate_up.dtype) else FUSED_TOKENS)
    hidden = rng.normal(size=(most, 200)).astype(np.float32)
    ids, weights = routing(rng, most, 40, 8)
    together = forward(engine, handle, hidden, ids, weights)
    for first, count in [(0, 1), (most - 1, 1), (3, 2), (5, 7), (most // 2, most // 2)]:
        some = slice(first, first + count)
        alone = forward(engine, handle, hidden[some], ids[some], weights[some])
        assert alone.tobytes() == together[some].tobytes()


def on_nodes(*workers: int, **options) -> _core.Engine:
    """An engine whose nodes have so many workers each, wherever they run."""
    nodes = [_core.NodeWorkers(node, [[]] * count) for node, count in enumerate(workers)]
    return _core.Engine(nodes=nodes, **options)


@pytest.mark.parametrize("fmt", ["int4-bf16-g32", "mxfp4-bias"])
def test_same_bits_on_any_number_of_nodes(tmp_path: Path, fmt: str):
    layer = random_layer(tmp_path / "b.lsgb", fmt=fmt, hidden=200, intermediate=330, experts=6)
    assert layer.spec.num_units == 11
    rng = np.random.default_rng(1)
    one = _core.Engine(threads=1)
    engines = [
        (one, {}),
        (on_nodes(1, 1), {}),
        (on_nodes(3, 1), {"node_units": [2, 9]}),
        (on_nodes(1, 2, 1), {"node_units": [0, 11, 0]}),
        (on_nodes(2, 1, 1), {"node_units": [5, 0, 6]}),
        (on_nodes(*[1] * 8), {}),
        (on_nodes(*[1] * 13), {}),
    ]
    handles = [(engine, engine.add_layer(str(layer.path), **split)) for engine, split in engines]
    for tokens in (1, 3, 9, 20, 150):
        hidden = rng.normal(size=(tokens, 200)).astype(np.float32)
        ids, weights = routing(rng, tokens, 6, 3)
        ids[0] = -1
        results = {forward(engine, handle, hidden, ids, weights).tobytes() for engine, handle in handles}
        # Prompts: each node's units are one sum.
        assert len(results) == 1 or not one.in_one_pass(handles[0][1], tokens, 3)
        for engine, handle in handles:
            check(layer, engine, handle, tokens)


def test_a_split_that_is_not_the_range_is_refused(tmp_path: Path):
    layer = random_layer(tmp_path / "s.lsgb", fmt="bf16", hidden=64, intermediate=200)
    engine = on_nodes(1, 1)
    for node_units in ([3], [3, 3], [5, 5], [8, -1], [3, 3, 1]):
        with pytest.raises(LsgError, match="2 nodes are to take 7"):
            engine.add_layer(str(layer.path), node_units=node_units)
    part = engine.add_layer(str(layer.path), unit_begin=2, unit_end=7, node_units=[2, 3])
    assert part == 0
    for bad in ({"threads": 1, "nodes": [_core.NodeWorkers(0, [[]])]}, {"nodes": [_core.NodeWorkers(0, [])]}):
        with pytest.raises(LsgError, match=r"not both|at least 1 thread"):
            _core.Engine(**bad)


def test_unit_ranges_add_up(tmp_path: Path):
    layer = random_layer(tmp_path / "p.lsgb", fmt="bf16", hidden=96, intermediate=200)
    engine = _core.Engine(threads=1, activations="float")
    units = layer.spec.num_units
    assert units == 7
    whole = engine.add_layer(str(layer.path))
    parts = [
        engine.add_layer(str(layer.path), unit_begin=begin, unit_end=end)
        for begin, end in [(0, 3), (3, 5), (5, 7), (7, 7)]
    ]
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(5, 96)).astype(np.float32)
    ids, weights = routing(rng, 5, 4, 2)
    want, bound = oracle(layer, hidden, ids, weights, Rounding.NONE)
    total = sum(forward(engine, part, hidden, ids, weights).astype(np.float64) for part in parts)
    assert (np.abs(total - want) <= bound + 4 * 2.0**-24 * np.abs(want)).all()
    assert not forward(engine, parts[3], hidden, ids, weights).any(), "a rank without units gives zero"
    assert (np.abs(forward(engine, whole, hidden, ids, weights) - want) <= bound).all()


@pytest.mark.parametrize(("dtype", "unit_roundoff"), [("bf16", 2.0**-8), ("f16", 2.0**-11)])
def test_half_precision_hidden_states(tmp_path: Path, dtype: str, unit_roundoff: float):
    layer = random_layer(tmp_path / "h.lsgb", fmt="int4-bf16-g32", hidden=96, intermediate=64)
    engine = _core.Engine(threads=2)
    handle = engine.add_layer(str(layer.path))
    rng = np.random.default_rng(0)
    for tokens in (1, 140):
        values = rng.normal(size=(tokens, 96))
        if dtype == "bf16":
            bits = bf16_bits(values)
            exact = bf16_value(bits)
        else:
            bits = values.astype(np.float16).view(np.uint16)
            exact = bits.view(np.float16).astype(np.float64)
        ids, weights = routing(rng, tokens, 4, 2)
        got = forward(engine, handle, bits, ids, weights, dtype)
        got_value = bf16_value(got) if dtype == "bf16" else got.view(np.float16).astype(np.float64)
        how = rounding(layer.spec.gate_up, engine, handle, tokens, ids.shape[1])
        want, bound = oracle(layer, exact.astype(np.float32), ids, weights, how)
        # Rounding to 8 (11) significant bits is off by at most 2⁻⁸ (2⁻¹¹) of the value, f16's subnormals by
        # 2⁻²⁵.
        assert (
            np.abs(got_value - want) <= bound * 1.01 + unit_roundoff * np.abs(want) * 1.01 + 2.0**-25
        ).all()


def test_padding_routes_nowhere(tmp_path: Path):
    layer = random_layer(tmp_path / "n.lsgb", fmt="int4-bf16-g32", hidden=64, intermediate=64)
    engine = _core.Engine(threads=2)
    handle = engine.add_layer(str(layer.path))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(140, 64)).astype(np.float32)
    ids, weights = routing(rng, 140, 4, 3)
    ids[5] = -1
    ids[7, 1] = -1
    for tokens in (8, 140):
        got = forward(engine, handle, hidden[:tokens], ids[:tokens], weights[:tokens])
        how = rounding(layer.spec.gate_up, engine, handle, tokens, ids.shape[1])
        want, bound = oracle(layer, hidden[:tokens], ids[:tokens], weights[:tokens], how)
        assert not got[5].any()
        assert (np.abs(got - want) <= bound).all()
    none = forward(engine, handle, hidden[:1], np.full((1, 3), -1, np.int32), weights[:1])
    assert not none.any()


def test_an_expert_named_twice_counts_with_both_weights(tmp_path: Path):
    layer = random_layer(tmp_path / "d.lsgb", fmt="bf16", hidden=64, intermediate=64)
    engine = _core.Engine(threads=2)
    handle = engine.add_layer(str(layer.path))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(140, 64)).astype(np.float32)
    ids, weights = routing(rng, 140, 4, 3)
    ids[::2, 2] = ids[::2, 0]
    for tokens in (1, 7, 140):
        got = forward(engine, handle, hidden[:tokens], ids[:tokens], weights[:tokens])
        how = rounding(layer.spec.gate_up, engine, handle, tokens, 3)
        want, bound = oracle(layer, hidden[:tokens], ids[:tokens], weights[:tokens], how)
        assert (np.abs(got - want) <= bound).all()


def test_no_tokens(tmp_path: Path):
    layer = random_layer(tmp_path / "z.lsgb", fmt="bf16", hidden=64, intermediate=64)
    engine = _core.Engine(threads=2)
    handle = engine.add_layer(str(layer.path))
    engine.forward(handle, 0, 0, 0, 0, tokens=0, top_k=3, dtype="bf16")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["int4-bf16-g32", "fp8-f32-32x128", "bf16"])
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_stay_in_their_token(
    tmp_path: Path, bad: float, activations: str, fmt: str, isa: str
):
    layer = random_layer(tmp_path / "i.lsgb", fmt=fmt, hidden=64, intermediate=64)
    engine = _core.Engine(threads=2, isa=isa, activations=activations)
    handle = engine.add_layer(str(layer.path))
    rng = np.random.default_rng(0)
    for tokens in (6, 140):
        hidden = rng.normal(size=(tokens, 64)).astype(np.float32)
        ids, weights = routing(rng, tokens, 4, 2)
        clean = forward(engine, handle, hidden, ids, weights)
        hidden[3, 17] = bad
        got = forward(engine, handle, hidden, ids, weights)
        assert not np.isfinite(got[3]).any()
        others = np.arange(tokens) != 3
        assert (got[others] == clean[others]).all()


def test_many_tokens_pass_in_chunks(tmp_path: Path):
    layer = random_layer(tmp_path / "c.lsgb", fmt="int4-bf16-g32", hidden=32, intermediate=32)
    engine = _core.Engine(threads=2)
    check(layer, engine, engine.add_layer(str(layer.path)), 4096 + 7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("fmt", "gated", "hidden"),
    [
        ("int4-bf16-g32", False, 130),
        ("nvfp4", False, 130),
        ("int4-bf16-g32", True, 2090),
        ("fp8-f32-32x128", True, 2090),
        ("fp8-f32-row", True, 2090),
        ("bf16", True, 4800),
        ("int4-bf16-g32", True, 9600),
        ("fp8-f32-32x128", True, 4800),
    ],
)
def test_prompts_of_ungated_and_of_wide_layers(tmp_path: Path, fmt: str, gated: bool, hidden: int, isa: str):
    # Without gates 64 neurons come at a time; 2090 inputs are more than a sweep takes at once. With 4800, or
    # 9600 in int8, an expert's tokens have more than a cache holds: parts of them meet several blocks of
    # outputs.
    layer = random_layer(tmp_path / "p.lsgb", fmt=fmt, hidden=hidden, intermediate=150, gated=gated)
    engine = _core.Engine(threads=2, isa=isa)
    kind = {} if gated else {"kind": _core.Activation.RELU2}
    handle = engine.add_layer(str(layer.path), **({} if gated else {"activation": _core.Activation.RELU2}))
    check(layer, engine, handle, 140, **kind)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("unit_rows", [32, 64])
def test_one_task_may_have_more_blocks_than_meet_a_part_of_the_inputs(
    tmp_path: Path, unit_rows: int, isa: str
):
    """256 experts leave a task all of an expert's units: five of 32 rows, or three with two blocks each."""
    layer = random_layer(
        tmp_path / "m.lsgb",
        fmt="int4-bf16-g32",
        hidden=2112,
        intermediate=160,
        experts=256,
        unit_rows=unit_rows,
        filled=1,
    )
    engine = _core.Engine(threads=2, isa=isa, activations="float")
    handle = engine.add_layer(str(layer.path))
    tokens = 250
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(tokens + 255, 2112)).astype(np.float32)
    ids = np.concatenate([np.zeros(tokens), np.arange(1, 256)]).astype(np.int32)[:, None]
    weights = rng.uniform(0.1, 1, size=ids.shape).astype(np.float32)
    got = forward(engine, handle, hidden, ids, weights)
    how = Rounding.BF16 if engine.isa == _core.Isa.AMX else Rounding.NONE
    want, bound = oracle(layer, hidden[:tokens], ids[:tokens], weights[:tokens], how)
    assert (np.abs(got[:tokens] - want) <= bound).all()
    assert (got[tokens:] == 0).all()


def test_bad_calls_are_refused(tmp_path: Path):
    layer = random_layer(tmp_path / "e.lsgb", fmt="bf16", hidden=64, intermediate=64)
    engine = _core.Engine(threads=1)
    handle = engine.add_layer(str(layer.path))
    hidden, weights = np.zeros((1, 64), np.float32), np.ones((1, 1), np.float32)
    with pytest.raises(LsgError, match="expert 4 for token 0, but the layer has 4 experts"):
        forward(engine, handle, hidden, np.array([[4]], np.int32), weights)
    with pytest.raises(LsgError, match="no layer with handle 1"):
        forward(engine, 1, hidden, np.array([[0]], np.int32), weights)
    with pytest.raises(LsgError, match="dtype must be f32, bf16 or f16"):
        forward(engine, handle, hidden, np.array([[0]], np.int32), weights, "f64")
    with pytest.raises(LsgError, match="hidden is a null pointer"):
        engine.forward(handle, 0, 0, 0, 0, tokens=1, top_k=1, dtype="f32")
    with pytest.raises(LsgError, match="units 1 to 9 asked for, but it has 2"):
        engine.add_layer(str(layer.path), unit_begin=1, unit_end=9)
    with pytest.raises(LsgError, match="at least 1 thread"):
        _core.Engine(threads=0)
    with pytest.raises(LsgError, match="activations must be int8 or float"):
        _core.Engine(threads=1, activations="fp8")
    with pytest.raises(LsgError, match="cannot be pinned to core 100000"):
        _core.Engine(nodes=[_core.NodeWorkers(0, [[], [100000]])])


def test_formats_without_a_kernel_are_refused(tmp_path: Path):
    int8 = _core.PanelFormat(_core.Dtype.INT8, _core.ScaleDtype.F32, scale_k=16)
    spec = _core.LayerSpec(
        layer_index=0,
        num_experts=1,
        hidden_size=64,
        intermediate_size=64,
        gated=True,
        gate_up=int8,
        down=int8,
    )
    path = tmp_path / "int8.lsgb"
    path.write_bytes(spec.header().ljust(spec.file_bytes, b"\0"))
    with pytest.raises(_core.FormatError, match="no kernel for int8 with f32 scales, scale_k 16"):
        _core.Engine(threads=1).add_layer(str(path))
