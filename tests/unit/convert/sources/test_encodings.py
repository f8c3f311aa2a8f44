"""Every encoding against the value that its own library, or its description, gives: exactly equal in float64.

Each encoder draws what is stored and says what it means; nothing here is shared with the converter.
"""

import numpy as np
import pytest
import torch

from checkpoints.hf import transformers  # noqa: F401 (compressed_tensors imports it, and it must find torchvision)

# isort: split
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from lsg import CheckpointError
from lsg._core import Dtype, PanelFormat, ScaleDtype

H, INNER = 160, 144  # no multiple of 128; 144 cuts 32 and 64 as well
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def uniform(rng, low, high, shape):
    return torch.from_numpy(rng.integers(low, high, shape))


def scales(rng, shape, dtype):
    if dtype == torch.float8_e8m0fnu:
        return uniform(rng, 110, 135, shape).to(torch.uint8).view(dtype)
    values = torch.from_numpy(rng.uniform(-2.0, 2.0, shape))
    return values.to(dtype)


def spread(blocks, rows, columns, shape):
    wide = blocks.double().repeat_interleave(rows, 0)[: shape[0]]
    return wide.repeat_interleave(columns, 1)[:, : shape[1]]


def shuffled(k, group):
    """The group of each input when they are sorted by some activation; the last may be short."""
    return torch.from_numpy((np.arange(k) // group)[np.random.default_rng(k).permutation(k)])


def half(dtype):
    def encode(rng, n, k):
        weight = torch.from_numpy(rng.standard_normal((n, k))).to(dtype)
        return {"weight": weight}, weight.double()

    return encode


def fp8(name, dtype, block, scale_dtype, *, raw=False, shape=None):
    """block: (rows, columns), None for the whole side."""

    def encode(rng, n, k):
        finite = 0x7F if dtype == torch.float8_e4m3fn else 0x7C
        codes = uniform(rng, 0, finite, (n, k)) | uniform(rng, 0, 2, (n, k)) << 7
        weight = codes.to(torch.uint8).view(dtype)
        rows, columns = block[0] or n, block[1] or k
        scale = scales(rng, (-(-n // rows), -(-k // columns)), scale_dtype)
        value = weight.double() * spread(scale, rows, columns, (n, k))
        if scale_dtype == torch.float8_e8m0fnu and raw:
            scale = scale.view(torch.uint8)
        return {
            "weight": weight.view(torch.uint8) if raw else weight,
            name: scale if shape is None else scale.reshape(shape),
        }, value

    return encode


def compressed(bits, group, scale_dtype, *, zero=None, order=None):
    def encode(rng, n, k):
        low, high = -(1 << (bits - 1)), 1 << (bits - 1)
        q = uniform(rng, low, high, (n, k)).to(torch.int8)
        scale = scales(rng, (n, -(-k // (group or k))), scale_dtype)
        parts = {
            "weight_packed": pack_to_int32(q, bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor([n, k]),
        }
        point = torch.zeros(scale.shape, dtype=torch.int8)
        if zero:
            point = uniform(rng, low, high, scale.shape).to(torch.int8)
            packed = pack_to_int32(point, bits, packed_dim=0).contiguous()
            parts["weight_zero_point"] = packed if zero == "packed" else point
        index = torch.arange(k) // (group or k)
        if order == "shuffled":
            index = shuffled(k, group)
        if order in ("group", "shuffled"):
            parts["weight_g_idx"] = index.to(torch.int32)
        if order == "none":
            parts["weight_g_idx"] = torch.full((k,), -1, dtype=torch.int32)
        return parts, (q.double() - point.double()[:, index]) * scale.double()[:, index]

    return encode


def plain_int8(rng, n, k):
    weight, scale = uniform(rng, -128, 128, (n, k)).to(torch.int8), scales(rng, (n, 1), torch.bfloat16)
    return {"weight": weight, "weight_scale": scale}, weight.double() * scale.double()


def words(nibbles):
    """int32 from [..., codes a word], lowest bits first."""
    bits = 32 // nibbles.shape[-1]
    value = sum(nibbles[..., i].long() << (bits * i) for i in range(nibbles.shape[-1]))
    return torch.from_numpy(value.numpy().astype(np.uint32).view(np.int32))


def awq(rng, n, k, group=32):
    groups = -(-k // group)
    u, z = uniform(rng, 0, 16, (k, n)), uniform(rng, 0, 16, (groups, n))
    scale = scales(rng, (groups, n), torch.float16)
    parts = {
        "qweight": words(u.reshape(k, n // 8, 8)[:, :, list(AWQ_ORDER)]),
        "qzeros": words(z.reshape(groups, n // 8, 8)[:, :, list(AWQ_ORDER)]),
        "scales": scale,
    }
    full = [x.double().repeat_interleave(group, 0)[:k] for x in (z, scale)]
    return parts, ((u.double() - full[0]) * full[1]).T


def gptq(bits, *, version=1, group=64, symmetric=False, index=True, order=False, largest=None):
    def encode(rng, n, k):
        groups, per_word = -(-k // group), 32 // bits
        u = uniform(rng, 0, 1 << bits, (k, n))
        z = uniform(rng, 2 - version, largest or (1 << bits), (groups, n))
        if symmetric:
            z = torch.full((groups, n), 1 << (bits - 1))
        scale = scales(rng, (groups, n), torch.float16)
        stored = z - (1 if version == 1 else 0)
        parts = {
            "qweight": words(u.reshape(k // per_word, per_word, n).transpose(1, 2)),
            "qzeros": words(stored.reshape(groups, n // per_word, per_word)),
            "scales": scale,
        }
        of_input = shuffled(k, group) if order else torch.arange(k) // group
        if index:
            parts["g_idx"] = of_input.to(torch.int32)
        return parts, ((u.double() - z.double()[of_input]) * scale.double()[of_input]).T

    return encode


def fp4_codes(rng, n, k):
    """Packed by compressed-tensors from values; and those values."""
    value = E2M1[uniform(rng, 0, 16, (n, k))]
    value[value == 0] = 0.0
    return pack_fp4_to_uint8(value.to(torch.bfloat16)), value


def mxfp4(weight, scale, *, weight_dtype=torch.uint8, scale_dtype=torch.uint8, blocks=False):
    def encode(rng, n, k):
        packed, value = fp4_codes(rng, n, k)
        exponent = uniform(rng, 100, 140, (n, -(-k // 32)))
        parts = {
            weight: packed.reshape(n, k // 32, 16) if blocks else packed.view(weight_dtype),
            scale: exponent.to(torch.uint8).view(scale_dtype),
        }
        return parts, value * spread(2.0 ** (exponent.double() - 127), 1, 32, (n, k))

    return encode


def nvfp4(rng, n, k, *, names, divide):
    packed, value = fp4_codes(rng, n, k)
    scale = torch.from_numpy(rng.uniform(0.1, 400, (n, k // 16))).to(torch.float8_e4m3fn)
    factor = torch.tensor(rng.uniform(0.001, 0.01), dtype=torch.float32)
    parts = {names[0]: packed, "weight_scale": scale}
    parts[names[1]] = (1 / factor).reshape(1) if divide else factor
    parts[names[2]] = torch.tensor([2.5])
    # What serves this dialect computes the reciprocal once, in single precision.
    used = 1 / parts[names[1]] if divide else factor
    return parts, value * spread(scale, 1, 16, (n, k)) * used.double()


def modelopt(rng, n, k):
    return nvfp4(rng, n, k, names=("weight", "weight_scale_2", "input_scale"), divide=False)


def compressed_nvfp4(rng, n, k):
    names = ("weight_packed", "weight_global_scale", "input_global_scale")
    return nvfp4(rng, n, k, names=names, divide=True)


E4M3, E5M2, F32, BF16, F16 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float32,
    torch.bfloat16,
    torch.float16,
)
E8M0 = torch.float8_e8m0fnu
INV = "weight_scale_inv"
GPTQ1 = {"quant_method": "gptq", "desc_act": False}
GPTQ2 = GPTQ1 | {"checkpoint_format": "gptq_v2"}
ACT = {"desc_act": True}


def panel(dtype, scale, rows, k, **more):
    return PanelFormat(dtype, scale, scale_rows=rows, scale_k=k, **more)


def int4(scale, k, *, zero=False, order=False):
    return panel(Dtype.INT4, scale, 1, k, zero_point=zero, k_permutation=order)


def eight(rows, k, scale=ScaleDtype.F32, dtype=Dtype.FP8_E4M3):
    return panel(dtype, scale, rows, k)


S = ScaleDtype
CASES = {
    "bf16": (half(BF16), "bf16", PanelFormat(Dtype.BF16), {}),
    "f16": (half(F16), "f16", PanelFormat(Dtype.F16), {}),
    "fp8-128": (fp8(INV, E4M3, (128, 128), F32), "fp8_e4m3", eight(32, 128), {}),
    "fp8-128-bf16": (fp8(INV, E4M3, (128, 128), BF16), "fp8_e4m3", eight(32, 128, S.BF16), {}),
    "fp8-128-ue8m0": (fp8("scale", E4M3, (128, 128), E8M0), "fp8_e4m3", eight(32, 128, S.E8M0), {}),
    "fp8-32": (fp8("scale", E4M3, (32, 32), E8M0), "fp8_e4m3", eight(32, 32, S.E8M0), {}),
    "fp8-1x128": (fp8(INV, E4M3, (1, 128), F32), "fp8_e4m3", eight(1, 128), {}),
    "fp8-u8": (fp8(INV, E4M3, (128, 128), F32, raw=True), "fp8_e4m3", eight(32, 128), {}),
    "fp8-e5m2": (
        fp8(INV, E5M2, (128, 128), F32),
        "fp8_e5m2",
        eight(32, 128, dtype=Dtype.FP8_E5M2),
        {},
    ),
    "mxfp8": (fp8(INV, E4M3, (1, 32), E8M0, raw=True), "fp8_e4m3", eight(1, 32, S.E8M0), {}),
    "fp8-channel": (fp8("weight_scale", E4M3, (1, None), BF16), "fp8_e4m3", eight(1, 0, S.BF16), {}),
    "fp8-channel-flat": (
        fp8("weight_scale", E4M3, (1, None), F32, shape=(-1,)),
        "fp8_e4m3",
        eight(1, 0),
        {},
    ),
    "fp8-tensor": (fp8("weight_scale", E4M3, (None, None), F32, shape=()), "fp8_e4m3", eight(1, 0), {}),
    "fp8-tensor-1": (fp8("weight_scale", E4M3, (None, None), F32, shape=(1,)), "fp8_e4m3", eight(1, 0), {}),
    "ct-4-g32": (compressed(4, 32, BF16), "compressed_tensors_int4", int4(S.BF16, 32), {}),
    "ct-4-g128": (compressed(4, 128, F16), "compressed_tensors_int4", int4(S.F16, 128), {}),
    "ct-4-channel": (compressed(4, None, F32), "compressed_tensors_int4", int4(S.F32, 0), {}),
    "ct-4-g16": (compressed(4, 16, BF16), "compressed_tensors_int4", int4(S.BF16, 16), {}),
    "ct-4-asym": (
        compressed(4, 32, BF16, zero="packed"),
        "compressed_tensors_int4",
        int4(S.BF16, 32, zero=True),
        {},
    ),
    "ct-4-asym-unpacked": (
        compressed(4, 64, BF16, zero="plain"),
        "compressed_tensors_int4",
        int4(S.BF16, 64, zero=True),
        {},
    ),
    "ct-4-g_idx": (
        compressed(4, 32, BF16, order="group"),
        "compressed_tensors_int4",
        int4(S.BF16, 32, order=True),
        {},
    ),
    "ct-4-g_idx-unset": (
        compressed(4, 32, BF16, order="none"),
        "compressed_tensors_int4",
        int4(S.BF16, 32, order=True),
        {},
    ),
    "ct-8-g32": (compressed(8, 32, BF16), "compressed_tensors_int8", panel(Dtype.INT8, S.BF16, 1, 32), {}),
    "ct-8-asym": (
        compressed(8, 128, F32, zero="packed"),
        "compressed_tensors_int8",
        panel(Dtype.INT8, S.F32, 1, 128, zero_point=True),
        {},
    ),
    "ct-8-plain": (plain_int8, "compressed_tensors_int8", panel(Dtype.INT8, S.BF16, 1, 0), {}),
    "awq": (awq, "awq_int4", int4(S.F16, 32, zero=True), {}),
    "gptq-v1": (gptq(4, largest=17), "gptq_int4", int4(S.F16, 64, zero=True), GPTQ1),
    "gptq-v1-no-index": (gptq(4, index=False), "gptq_int4", int4(S.F16, 64, zero=True), GPTQ1),
    "gptq-v1-sym": (gptq(4, symmetric=True), "gptq_int4", int4(S.F16, 64), GPTQ1 | {"sym": True}),
    "gptq-v2": (gptq(4, version=2, group=128), "gptq_int4", int4(S.F16, 128, zero=True), GPTQ2),
    "gptq-v2-sym": (
        gptq(4, version=2, symmetric=True),
        "gptq_int4",
        int4(S.F16, 64),
        GPTQ2 | {"sym": True},
    ),
    "gptq-8": (gptq(8, group=32), "gptq_int8", panel(Dtype.INT8, S.F16, 1, 32, zero_point=True), GPTQ1),
    "gptq-8-sym": (
        gptq(8, symmetric=True),
        "gptq_int8",
        panel(Dtype.INT8, S.F16, 1, 64),
        GPTQ1 | {"sym": True},
    ),
    "mxfp4-ct": (
        mxfp4("weight_packed", "weight_scale"),
        "mxfp4",
        panel(Dtype.FP4_E2M1, S.E8M0, 1, 32),
        {},
    ),
    "mxfp4-deepseek": (
        mxfp4("weight", "scale", weight_dtype=torch.int8, scale_dtype=E8M0),
        "mxfp4",
        panel(Dtype.FP4_E2M1, S.E8M0, 1, 32),
        {},
    ),
    "mxfp4-modelopt": (mxfp4("weight", "weight_scale"), "mxfp4", panel(Dtype.FP4_E2M1, S.E8M0, 1, 32), {}),
    "mxfp4-blocks": (
        mxfp4("blocks", "scales", blocks=True),
        "mxfp4",
        panel(Dtype.FP4_E2M1, S.E8M0, 1, 32),
        {},
    ),
    "nvfp4-modelopt": (
        modelopt,
        "nvfp4",
        panel(Dtype.FP4_E2M1, S.FP8_E4M3, 1, 16, global_scale=True),
        {},
    ),
    "nvfp4-ct": (
        compressed_nvfp4,
        "nvfp4",
        panel(Dtype.FP4_E2M1, S.FP8_E4M3, 1, 16, global_scale=True),
        {},
    ),
}

# As CASES, with inputs whose groups are not runs; H and INNER leave the last group short.
ORDERED = {
    "ct-4": (
        compressed(4, 128, BF16, order="shuffled"),
        "compressed_tensors_int4",
        int4(S.BF16, 128, order=True),
        {},
    ),
    "ct-8-asym": (
        compressed(8, 32, F32, zero="packed", order="shuffled"),
        "compressed_tensors_int8",
        panel(Dtype.INT8, S.F32, 1, 32, zero_point=True, k_permutation=True),
        {},
    ),
    "gptq-v1": (
        gptq(4, largest=17, order=True),
        "gptq_int4",
        int4(S.F16, 64, zero=True, order=True),
        GPTQ1 | ACT,
    ),
    "gptq-v2-unsaid": (
        gptq(4, version=2, group=128, order=True),
        "gptq_int4",
        int4(S.F16, 128, zero=True, order=True),
        {"checkpoint_format": "gptq_v2"},
    ),
    "gptq-8-sym": (
        gptq(8, symmetric=True, order=True),
        "gptq_int8",
        panel(Dtype.INT8, S.F16, 1, 64, k_permutation=True),
        GPTQ1 | ACT | {"sym": True},
    ),
}


def experts(encode, sizes, rng, prefix="model.layers.0.mlp.experts"):
    """Tensors of two experts, and what they mean by (expert, projection)."""
    hidden, intermediate = sizes
    tensors, meaning = {}, {}
    for expert in range(2):
        for name, shape in (
            ("gate", (intermediate, hidden)),
            ("up", (intermediate, hidden)),
            ("down", (hidden, intermediate)),
        ):
            parts, meaning[expert, name] = encode(rng, *shape)
            tensors |= {f"{prefix}.{expert}.{name}_proj.{part}": tensor for part, tensor in parts.items()}
    return tensors, meaning


def sizes_of(case):
    # MXFP4 is defined for whole groups only.
    return (H, 96) if case.startswith("mxfp4") else (H, INNER)


@pytest.mark.parametrize("case", CASES)
def test_means_what_its_format_says(find, values, case):
    encode, name, expected, quantization = CASES[case]
    tensors, meaning = experts(encode, sizes_of(case), np.random.default_rng(1))
    source = find(tensors, quantization_config=quantization)
    layer = source.layers[0]
    assert source.format == name
    assert layer.gate_up == expected
    assert (layer.hidden_size, layer.intermediate_size) == sizes_of(case)
    assert source.tensor_names == set(tensors)
    for expert in range(2):
        for projection, value in values(source, 0, expert).items():
            np.testing.assert_array_equal(value, meaning[expert, projection].numpy(), strict=True)


@pytest.mark.parametrize("case", ["ct-4-asym", "ct-8-asym", "fp8-128"])
def test_square_matrices_are_not_transposed(find, values, case):
    # With H = INNER and g = 32 packed zero points are square too.
    encode, _, _, quantization = CASES[case]
    tensors, meaning = experts(encode, (256, 256), np.random.default_rng(2))
    source = find(tensors, quantization_config=quantization)
    for projection, value in values(source, 0, 1).items():
        np.testing.assert_array_equal(value, meaning[1, projection].numpy(), strict=True)


def test_formats_may_differ_between_layers_and_between_gate_up_and_down(find, values):
    rng = np.random.default_rng(3)
    tensors, meaning = {}, {}
    for index, (inputs, down) in enumerate(
        [("nvfp4-modelopt", "fp8-tensor"), ("ct-4-g32", "ct-8-g32"), ("bf16",) * 2]
    ):
        prefix = f"model.layers.{index}.mlp.experts"
        first, first_meaning = experts(CASES[inputs][0], (H, 96), rng, prefix)
        second, second_meaning = experts(CASES[down][0], (H, 96), rng, prefix)
        tensors |= {n: t for n, t in first.items() if "down" not in n}
        tensors |= {n: t for n, t in second.items() if "down" in n}
        second_meaning = {key: value for key, value in second_meaning.items() if "down" in key}
        for (expert, name), value in (first_meaning | second_meaning).items():
            meaning[index, expert, name] = value
    source = find(tensors)
    assert source.format == "bf16+compressed_tensors_int4+compressed_tensors_int8+fp8_e4m3+nvfp4"
    for index in range(3):
        for projection, value in values(source, index, 1).items():
            np.testing.assert_array_equal(value, meaning[index, 1, projection].numpy())


@pytest.mark.parametrize(
    ("case", "part", "bad"),
    [
        ("fp8-128", "weight", 0x7F),
        ("fp8-128", "weight", 0xFF),
        ("fp8-e5m2", "weight", 0x7C),
        ("fp8-e5m2", "weight", 0xFE),
        ("fp8-32", "scale", 0xFF),
        ("mxfp8", INV, 0xFF),
        ("mxfp4-ct", "weight_scale", 0xFF),
        ("nvfp4-modelopt", "weight_scale", 0x7F),
    ],
)
def test_bytes_that_are_no_numbers_are_refused(find, case, part, bad):
    tensors, _ = experts(CASES[case][0], sizes_of(case), np.random.default_rng(4))
    victim = f"model.layers.0.mlp.experts.1.down_proj.{part}"
    tensors[victim].view(torch.uint8)[2, 1] = bad
    source = find(tensors)
    source.check(source.layers[0], 0)
    with pytest.raises(CheckpointError, match=f"{victim} has NaN or infinite weights"):
        source.check(source.layers[0], 1)


@pytest.mark.parametrize("case", ["fp8-128", "fp8-128-bf16", "ct-4-g128", "nvfp4-modelopt"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scales_must_be_finite(find, case, bad):
    tensors, _ = experts(CASES[case][0], sizes_of(case), np.random.default_rng(5))
    scale = next(name for name in tensors if "0.up_proj" in name and ("scale_inv" in name or "scale" in name))
    if case == "nvfp4-modelopt":
        scale = "model.layers.0.mlp.experts.0.up_proj.weight_scale_2"
    tensors[scale].view(-1)[0] = bad
    source = find(tensors)
    with pytest.raises(CheckpointError, match=f"{scale} has NaN or infinite weights"):
        source.check(source.layers[0], 0)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_a_global_scale_that_divides_nothing_is_refused(find, value):
    tensors, _ = experts(compressed_nvfp4, (H, INNER), np.random.default_rng(6))
    tensors["model.layers.0.mlp.experts.0.gate_proj.weight_global_scale"][0] = value
    source = find(tensors)
    with pytest.raises(CheckpointError, match=rf"gate_proj.weight_packed: weight_global_scale is {value}"):
        source.read(source.layers[0], 0)


def sorted_by_group(tensors, projection):
    name = next(name for name in tensors if f"1.{projection}_proj" in name and name.endswith("g_idx"))
    return torch.sort(tensors[name], stable=True).indices


@pytest.mark.parametrize("case", ORDERED)
def test_inputs_are_sorted_by_group(find, values, case):
    """Down's are the neurons: the rows of gate and up."""
    encode, name, expected, quantization = ORDERED[case]
    tensors, meaning = experts(encode, (H, INNER), np.random.default_rng(1))
    source = find(tensors, quantization_config=quantization)
    (layer,) = source.layers
    assert source.format == name
    assert layer.gate_up == expected
    assert not layer.down.k_permutation
    inputs, neurons = sorted_by_group(tensors, "up"), sorted_by_group(tensors, "down")
    gate, up, _ = source.read(layer, 1)
    assert gate.input_order.tolist() == up.input_order.tolist() == inputs.tolist()
    found = values(source, 0, 1)
    for projection in ("gate", "up"):
        np.testing.assert_array_equal(found[projection], meaning[1, projection][neurons][:, inputs].numpy())
    np.testing.assert_array_equal(found["down"], meaning[1, "down"][:, neurons].numpy())


def test_rows_that_move_share_no_scale(find, values):
    """FP8 blocks in gate and up, beside a down that orders the neurons."""
    rng = np.random.default_rng(3)
    tensors, meaning = experts(CASES["fp8-128"][0], (H, INNER), rng)
    tensors = {name: tensor for name, tensor in tensors.items() if "down" not in name}
    ordered, ordered_meaning = experts(ORDERED["ct-4"][0], (H, INNER), rng)
    tensors |= {name: tensor for name, tensor in ordered.items() if "down" in name}
    source = find(tensors)
    assert source.layers[0].gate_up == eight(1, 128)
    neurons = sorted_by_group(ordered, "down")
    found = values(source, 0, 1)
    np.testing.assert_array_equal(found["up"], meaning[1, "up"][neurons].numpy())
    np.testing.assert_array_equal(found["down"], ordered_meaning[1, "down"][:, neurons].numpy())


def edited(tensors, name, edit):
    name = f"model.layers.0.mlp.experts.1.{name}"
    return tensors | {name: edit(tensors[name])}


def uneven(index):
    return torch.where(index == 1, 0, index)


@pytest.mark.parametrize(
    ("case", "name", "edit", "sentence"),
    [
        ("ct-4", "gate_proj.weight_g_idx", lambda i: i.flip(0), "give the same inputs two orders"),
        ("gptq-v1", "up_proj.g_idx", lambda i: i.flip(0), "give the same inputs two orders"),
        ("gptq-v1", "down_proj.g_idx", uneven, r"1.down_proj.*64 inputs to every group but the last"),
        ("gptq-v1", "up_proj.g_idx", lambda i: i - 1, r"1.up_proj.*64 inputs to every group but the last"),
        ("ct-8-asym", "up_proj.weight_g_idx", uneven, r"32 inputs to every group but the last"),
    ],
)
def test_orders_that_no_quantiser_writes_are_refused(find, case, name, edit, sentence):
    encode, _, _, quantization = ORDERED[case]
    tensors, _ = experts(encode, (H, INNER), np.random.default_rng(7))
    source = find(edited(tensors, name, edit), quantization_config=quantization)
    with pytest.raises(CheckpointError, match=sentence):
        source.read(source.layers[0], 1)


def test_an_order_that_the_configuration_denies_is_refused(find):
    tensors, _ = experts(ORDERED["gptq-v1"][0], (H, INNER), np.random.default_rng(7))
    source = find(tensors, quantization_config=GPTQ1)
    assert not source.layers[0].gate_up.k_permutation
    with pytest.raises(CheckpointError, match=r"0.gate_proj.*order, but config.json .* correct `desc_act`"):
        source.read(source.layers[0], 0)


@pytest.mark.parametrize(("case", "found"), [("gptq-v1-sym", 7), ("gptq-v2-sym", 9)])
def test_a_wrong_gptq_version_shows_in_symmetric_zero_points(find, case, found):
    tensors, _ = experts(CASES[case][0], (H, INNER), np.random.default_rng(8))
    other = GPTQ2 if case == "gptq-v1-sym" else GPTQ1
    source = find(tensors, quantization_config=other | {"sym": True})
    with pytest.raises(
        CheckpointError, match=rf"a zero point is {found}, but config.json .* symmetric \(8\)"
    ):
        source.read(source.layers[0], 0)
