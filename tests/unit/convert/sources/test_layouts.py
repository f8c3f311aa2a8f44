"""Names and places: every spelling of the same experts gives the same matrices."""

import numpy as np
import pytest
import torch

from lsg import CheckpointError

H, INNER, E = 64, 48, 2


@pytest.fixture
def weights():
    """gate and up [E, INNER, H], down [E, H, INNER]."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate": (E, INNER, H), "up": (E, INNER, H), "down": (E, H, INNER)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def single(weights, prefix, names=("gate_proj", "up_proj", "down_proj")):
    return {
        f"{prefix}.{expert}.{name}.weight": weights[projection][expert]
        for projection, name in zip(("gate", "up", "down"), names, strict=True)
        for expert in range(E)
    }


def fused(weights, prefix, part=""):
    gate_up = torch.cat([weights["gate"], weights["up"]], 1)
    return {f"{prefix}.gate_up_proj{part}": gate_up, f"{prefix}.down_proj{part}": weights["down"]}


def transposed(tensors):
    return {name: tensor.transpose(1, 2) for name, tensor in tensors.items()}


def check(values, source, weights, index=3):
    for expert in range(E):
        found = values(source, index, expert)
        assert set(found) == set(weights)
        for name, value in found.items():
            np.testing.assert_array_equal(value, weights[name][expert].double().numpy())


LAYER = "model.layers.3"
W123 = ("w1", "w3", "w2")
SPELLINGS = {
    "qwen3": lambda w: single(w, f"{LAYER}.mlp.experts"),
    "glm-v": lambda w: single(w, "model.language_model.layers.3.mlp.experts"),
    "kimi": lambda w: single(w, "language_model.model.layers.3.mlp.experts"),
    "minimax": lambda w: single(w, f"{LAYER}.block_sparse_moe.experts", W123),
    "deepseek-v4": lambda w: single(w, "layers.3.ffn.experts", W123),
    "nemotron-h": lambda w: single(w, "backbone.layers.3.mixer.experts"),
    "qwen3.5": lambda w: fused(w, "model.language_model.layers.3.mlp.experts"),
    "fused-with-weight": lambda w: fused(w, f"{LAYER}.mlp.experts", ".weight"),
    "gemma-4": lambda w: fused(w, "model.language_model.layers.3.experts"),
    "qwen3-vl": lambda w: transposed(fused(w, "model.language_model.layers.3.mlp.experts")),
    "step": lambda w: {f"{LAYER}.moe.{name}_proj.weight": tensor for name, tensor in w.items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_finds_the_same_experts_under_every_name(find, values, weights, spelling):
    tensors = SPELLINGS[spelling](weights)
    resident = {
        f"{LAYER}.mlp.shared_experts.up_proj.weight": torch.zeros(4, 4),
        f"{LAYER}.mlp.shared_expert.gate_proj.weight": torch.zeros(4, 4),
        f"{LAYER}.mlp.gate_up_proj.weight": torch.zeros(4, 4),
        f"{LAYER}.mlp.experts.e_score_correction_bias": torch.zeros(4),
    }
    source = find(tensors | resident)
    (layer,) = source.layers
    assert (layer.index, layer.hidden_size, layer.intermediate_size, layer.gated) == (3, H, INNER, True)
    assert source.tensor_names == set(tensors)
    assert layer.expert_bytes == sum(tensor.nbytes for tensor in tensors.values()) // E
    check(values, source, weights)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (32, 32), (96, 32)])
@pytest.mark.parametrize("turn", [False, True])
def test_shapes_tell_transposed_stacks_from_others(find, values, shape, turn):
    # H = 2I is the case in which gate_up is square.
    hidden, intermediate = shape
    generator = torch.Generator().manual_seed(1)
    sizes = {
        "gate": (E, intermediate, hidden),
        "up": (E, intermediate, hidden),
        "down": (E, hidden, intermediate),
    }
    weights = {name: torch.randn(size, generator=generator).bfloat16() for name, size in sizes.items()}
    tensors = fused(weights, f"{LAYER}.mlp.experts")
    source = find(transposed(tensors) if turn else tensors)
    assert (source.layers[0].hidden_size, source.layers[0].intermediate_size) == shape
    check(values, source, weights)


@pytest.mark.parametrize("intermediate", [128, 192, 176, 80])
@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("suffix", ["_scale_inv", ".weight_scale_inv"])
def test_fused_fp8_blocks_may_lie_across_gate_and_up(find, values, intermediate, turn, suffix):
    hidden, generator = 192, torch.Generator().manual_seed(2)

    def stack(n, k):
        codes = torch.randint(0, 127, (E, n, k), generator=generator).to(torch.uint8)
        weight = codes.view(torch.float8_e4m3fn)
        scale = torch.rand(E, -(-n // 128), -(-k // 128), generator=generator)
        full = scale.double().repeat_interleave(128, 1).repeat_interleave(128, 2)
        return weight, scale, weight.double() * full[:, :n, :k]

    gate_up, gate_up_scale, gate_up_value = stack(2 * intermediate, hidden)
    down, down_scale, down_value = stack(hidden, intermediate)
    part = "" if suffix == "_scale_inv" else ".weight"
    tensors = {
        f"{LAYER}.mlp.experts.gate_up_proj{part}": gate_up,
        f"{LAYER}.mlp.experts.gate_up_proj{suffix}": gate_up_scale,
        f"{LAYER}.mlp.experts.down_proj{part}": down,
        f"{LAYER}.mlp.experts.down_proj{suffix}": down_scale,
    }
    source = find(transposed(tensors) if turn else tensors)
    # Blocks of 128 that begin inside a run of 32 rows need a scale for each row.
    assert source.layers[0].gate_up.scale_rows == (1 if intermediate % 32 else 32)
    check(
        values,
        source,
        {"gate": gate_up_value[:, :intermediate], "up": gate_up_value[:, intermediate:], "down": down_value},
    )


@pytest.mark.parametrize("shape", [(E,), (E, 1, 1)])
def test_a_stack_may_have_one_scale_an_expert(find, values, weights, shape):
    codes = {name: (t * 32).to(torch.float8_e4m3fn) for name, t in fused(weights, "x").items()}
    scale = torch.tensor([0.5, 3.0])
    tensors = {f"{LAYER}.mlp.experts.{n[2:]}": t for n, t in codes.items()}
    tensors |= {
        f"{LAYER}.mlp.experts.{name}_{part}": scale.reshape(shape)
        for name in ("gate_up_proj", "down_proj")
        for part in ("scale_inv", "activation_scale")
    }
    source = find(tensors)
    value = {n[2:]: t.double() * scale.double().reshape(E, 1, 1) for n, t in codes.items()}
    gate, up = value["gate_up_proj"].chunk(2, 1)
    check(values, source, {"gate": gate, "up": up, "down": value["down_proj"]})
    assert source.tensor_names == set(tensors)


def test_gpt_oss_interleaves_gate_and_up_and_has_biases(find, values):
    hidden, intermediate = 64, 96
    generator = torch.Generator().manual_seed(3)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)

    def stack(n, k):
        blocks = torch.randint(0, 256, (E, n, k // 32, 16), generator=generator).to(torch.uint8)
        exponents = torch.randint(120, 130, (E, n, k // 32), generator=generator).to(torch.uint8)
        bias = torch.randn(E, n, generator=generator).bfloat16()
        codes = torch.stack([blocks & 15, blocks >> 4], -1).reshape(E, n, k // 32, 32)
        value = table[codes.long()] * (2.0 ** (exponents.double() - 127))[..., None]
        return {"blocks": blocks, "scales": exponents, "bias": bias}, value.reshape(E, n, k), bias.float()

    inputs, value, bias = stack(2 * intermediate, hidden)
    down, down_value, down_bias = stack(hidden, intermediate)
    tensors = {f"{LAYER}.mlp.experts.gate_up_proj_{part}": tensor for part, tensor in inputs.items()}
    tensors |= {f"{LAYER}.mlp.experts.down_proj_{part}": tensor for part, tensor in down.items()}
    source = find(tensors)
    assert source.format == "mxfp4"
    check(
        values,
        source,
        {
            "gate": value[:, 0::2],
            "up": value[:, 1::2],
            "down": down_value,
            "gate_bias": bias[:, 0::2],
            "up_bias": bias[:, 1::2],
            "down_bias": down_bias,
        },
    )


def test_unquantised_gpt_oss_is_transposed_and_interleaved(find, values, weights):
    gate_up = torch.stack([weights["gate"], weights["up"]], 2).reshape(E, 2 * INNER, H)
    bias, down_bias = (
        torch.arange(E * 2 * INNER).reshape(E, 2 * INNER).bfloat16(),
        torch.ones(E, H).bfloat16(),
    )
    prefix = f"{LAYER}.mlp.experts"
    tensors = transposed({f"{prefix}.gate_up_proj": gate_up, f"{prefix}.down_proj": weights["down"]})
    tensors |= {f"{prefix}.gate_up_proj_bias": bias, f"{prefix}.down_proj_bias": down_bias}
    extra = {"gate_bias": bias[:, 0::2], "up_bias": bias[:, 1::2], "down_bias": down_bias}
    check(values, find(tensors), weights | extra)


def test_experts_without_gate(find, values, weights):
    del weights["gate"]
    tensors = {
        f"backbone.layers.3.mixer.experts.{expert}.{name}_proj.weight": tensor[expert]
        for name, tensor in weights.items()
        for expert in range(E)
    }
    source = find(tensors, hidden_act=None, mlp_hidden_act="relu2", hidden_size=4 * H)
    assert not source.layers[0].gated
    assert source.layers[0].hidden_size == H
    check(values, source, weights)


def test_draft_modules_stay_resident_and_draft_layers_do_not(find, values, weights):
    drafts = single(weights, "mtp.layers.0.mlp.experts")
    drafts |= single(weights, "mtp.1.ffn.experts", W123)
    drafts |= fused(weights, "model.mtp.layers.3.mlp.experts")
    drafts |= {"mtp.layers.0.mlp.gate.weight": torch.zeros(E, H)}
    numbered = single(weights, "model.layers.4.mlp.experts")
    own = single(weights, f"{LAYER}.mlp.experts")
    source = find(drafts | own | numbered, num_hidden_layers=4)
    assert source.tensor_names == set(own | numbered)
    assert [layer.index for layer in source.layers] == [3, 4]
    check(values, source, weights, 4)


def test_what_only_activations_need_is_dropped(find, values, weights):
    tensors = single(weights, f"{LAYER}.mlp.experts")
    unused = {f"{LAYER}.mlp.experts.0.up_proj.input_scale": torch.ones(1)}
    source = find(tensors | unused)
    assert source.tensor_names == set(tensors | unused)
    check(values, source, weights)


def _without(name):
    return lambda tensors: tensors.pop(name)


def _with(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


P = f"{LAYER}.mlp.experts"
Q = f"{P}.1.up_proj"


@pytest.mark.parametrize(
    ("make", "edit", "sentence"),
    [
        (
            single,
            _without(f"{P}.1.down_proj.weight"),
            r"1.down_proj.weight is missing, but config.json .* 2 experts",
        ),
        (fused, _without(f"{P}.down_proj"), r"experts.down_proj.weight is missing"),
        (
            fused,
            _with(f"{P}.0.up_proj.weight", torch.ones(INNER, H)),
            "both stacks .* and tensors of single experts",
        ),
        (
            fused,
            _with(f"{P}.gate_up_proj", torch.ones(3, 2 * INNER, H).bfloat16()),
            r"\[3, 96, 64\], but .* 2 experts",
        ),
        (
            fused,
            _with(f"{P}.gate_up_proj", torch.ones(E, 2 * INNER - 1, H).bfloat16()),
            "a kind that .* does not read",
        ),
        (
            lambda weights, prefix: (
                single(weights, prefix) | single(weights, "model.visual.layers.3.experts")
            ),
            lambda tensors: None,
            "both the experts of layer 3",
        ),
        (single, _with(f"{P}.0.w1.weight", torch.ones(INNER, H).bfloat16()), r"w1.weight .* does not read"),
        (
            single,
            lambda tensors: tensors.update(
                {f"{Q}.qweight": torch.ones(H // 8, INNER).int()} | {f"{Q}.weight": None}
            ),
            r"up_proj.weight is missing, but there is only qweight and a layer's experts must .* one format",
        ),
        (
            single,
            _with(f"{P}.1.up_proj.bias", torch.ones(INNER).bfloat16()),
            r"1.up_proj.bias .* does not read",
        ),
        (
            single,
            _with(f"{P}.0.gate_proj.bias", torch.ones(INNER).bfloat16()),
            r"1.gate_proj.bias is missing, but there is only weight",
        ),
    ],
)
def test_refuses(find, weights, make, edit, sentence):
    tensors = make(weights, P)
    edit(tensors)
    with pytest.raises(CheckpointError, match=sentence):
        find({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"weight": ((INNER, H), torch.float8_e4m3fn)}, "does not read"),
        (
            {"weight": ((INNER, H), torch.float8_e4m3fn), "weight_scale_inv": ((5, 1), torch.float32)},
            "gate_proj.weight_scale_inv has 5 values for 48 rows; no block size that is a power of two fits",
        ),
        (
            {
                "weight_packed": ((INNER, H // 8), torch.int32),
                "weight_scale": ((INNER, H // 8), torch.bfloat16),
            },
            f"{P}: groups of 8 inputs are not supported",
        ),
        (
            {
                "weight_packed": ((INNER, H // 8 + 1), torch.int32),
                "weight_scale": ((INNER, 2), torch.bfloat16),
            },
            r"gate_proj.weight_packed has shape \[48, 9\], expected \[48, 16\]",
        ),
        (
            {
                "weight_packed": ((INNER, H // 8), torch.int32),
                "weight_scale": ((INNER, 2), torch.bfloat16),
                "weight_zero_point": ((INNER, 1), torch.int32),
            },
            r"gate_proj.weight_zero_point has shape \[48, 1\], expected \[6, 2\]",
        ),
        (
            {
                "qweight": ((H // 8, INNER), torch.int32),
                "scales": ((1, INNER), torch.float16),
                "qzeros": ((2, INNER // 8), torch.int32),
            },
            r"gate_proj.qzeros has shape \[2, 6\], expected \[1, 6\]",
        ),
        # The two dialects of NVFP4, mixed.
        (
            {
                "weight_packed": ((INNER, H // 2), torch.uint8),
                "weight_scale": ((INNER, H // 16), torch.float8_e4m3fn),
                "weight_scale_2": ((), torch.float32),
            },
            "does not read",
        ),
    ],
)
def test_refuses_matrices_that_fit_no_encoding(find, weights, parts, sentence):
    tensors = {name: t for name, t in single(weights, P).items() if "down" in name}
    for expert in range(E):
        for name in ("gate", "up"):
            tensors |= {
                f"{P}.{expert}.{name}_proj.{part}": torch.zeros(shape, dtype=dtype)
                for part, (shape, dtype) in parts.items()
            }
    with pytest.raises(CheckpointError, match=sentence):
        find(tensors)
