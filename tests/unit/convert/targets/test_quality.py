"""The choices of scales: against all scales there are, and against what each format's docstring says."""

import numpy as np
import pytest
import torch
from converting import make_target
from target_oracle import E2M1, bf16_bits, bf16_values, decode, float8, random_matrix

from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype
from lsg.convert.targets import SEARCHING

BF16 = PanelFormat(Dtype.BF16)


def awkward(rng, rows, cols):
    """Rows of many kinds: normal, heavy tails, one outlier, few distinct values, tiny, near powers of two."""
    values = rng.normal(size=(rows, cols))
    values[1::6] = rng.standard_t(2, values[1::6].shape)
    values[2::6, ::32] *= 20
    values[3::6] = rng.choice([0, 0.25, 1, 4, 6.5, 7], values[3::6].shape)
    values[4::6] *= 2.0**-60
    values[5::6] = 2.0 ** rng.integers(-6, 3, values[5::6].shape) * rng.choice([1, 1.75], values[5::6].shape)
    return bf16_bits(values)


def converted(name, bits, search=True):
    target = make_target(name, search=search)
    result = target.convert(Matrix(bits), BF16)
    return result, decode(result.matrix, target.panel(BF16))


def fp4_error(group, scale):
    """Least squared error of the group's weights with that scale."""
    distance = np.abs(np.abs(group)[:, None] - E2M1[:8] * scale)
    return (distance.min(axis=1) ** 2).sum()


@pytest.mark.parametrize("name", sorted(SEARCHING))
def test_search_is_never_worse_and_usually_better(name):
    bits = awkward(np.random.default_rng(0), 66, 256)
    exact = bf16_values(bits)
    searched, plain = (((converted(name, bits, search)[1] - exact) ** 2) for search in (True, False))
    assert searched.sum() < plain.sum()
    if name != "int4":  # int4's plain scale is of another sign, so not among those that are searched
        group = 32 if name == "mxfp4" else 16
        by_group = [e.reshape(66, -1, group).sum(axis=2) for e in (searched, plain)]
        assert (by_group[0] <= by_group[1] * (1 + 1e-5)).all()


def test_mxfp4_takes_the_best_of_all_powers_of_two():
    bits = awkward(np.random.default_rng(1), 60, 64)
    # One large weight and many that only a scale which clips it can tell from zero.
    bits[0] = bf16_bits(np.where(np.arange(64) % 32, 0.25, 4))
    exact = bf16_values(bits).reshape(-1, 32)
    _, stored = converted("mxfp4", bits)
    error = ((stored.reshape(-1, 32) - exact) ** 2).sum(axis=1)
    for group, found in zip(exact, error, strict=True):
        best = min(fp4_error(group, 2.0**e) for e in range(-80, 20))
        assert best <= found <= best * (1 + 1e-5)


def test_nvfp4_is_near_the_best_of_all_e4m3_scales():
    bits = bf16_bits(np.random.default_rng(2).standard_t(4, (48, 32)))
    exact = bf16_values(bits)
    result, stored = converted("nvfp4", bits)
    assert result.matrix.global_scale == np.float32(np.abs(exact).max() / (6 * 448))
    scales = float8(np.arange(1, 0x7F), torch.float8_e4m3fn) * result.matrix.global_scale
    best = sum(min(fp4_error(group, s) for s in scales) for group in exact.reshape(-1, 16))
    assert best * (1 - 1e-6) <= ((stored - exact) ** 2).sum() <= best * 1.001


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_fp4_weights_get_the_nearest_code_of_their_scale(name):
    bits = awkward(np.random.default_rng(3), 36, 96)
    exact = bf16_values(bits)
    result, stored = converted(name, bits)
    scale = float8(result.matrix.scales, torch.float8_e4m3fn) if name == "nvfp4" else None
    if scale is None:
        scale = 2.0 ** (result.matrix.scales.astype(np.float64) - 127)
    else:
        scale = scale * result.matrix.global_scale
    scale = np.repeat(scale, 96 // scale.shape[1], axis=1)
    nearest = np.abs(np.abs(exact)[..., None] - E2M1[:8] * scale[..., None]).min(axis=-1)
    # Where two codes are equally near, float32 may fall on either side.
    np.testing.assert_allclose(np.abs(stored - exact), nearest, rtol=1e-5, atol=1e-30)


def test_int8_is_within_half_a_step():
    bits = awkward(np.random.default_rng(4), 36, 96)
    exact = bf16_values(bits)
    result, stored = converted("int8", bits)
    largest = np.abs(exact).reshape(36, 3, 32).max(axis=2)
    scale = bf16_values(result.matrix.scales)
    np.testing.assert_allclose(scale, largest / 127, rtol=2.0**-8)
    codes = result.matrix.codes.view(np.int8).astype(int)
    assert (np.abs(codes).reshape(36, 3, 32).max(axis=2) == 127)[largest > 0].all()
    # Half a step, and the quarter that 127 steps gain when bf16 rounds the scale.
    step = np.repeat(scale, 32, axis=1)
    assert (np.abs(stored - exact) <= step * (0.5 + 1e-5)).all()


def test_fp8_blocks_have_the_smallest_power_of_two_that_fits():
    bits = awkward(np.random.default_rng(5), 300, 200)
    exact = bf16_values(bits)
    exact[128:256, :128] *= 2.0 ** (np.floor(np.log2(448 / np.abs(exact[128:256, :128]).max())))
    exact[130, 5] = 448.0  # the largest number there is, exactly
    bits = bf16_bits(exact)
    result, _ = converted("fp8", bits)
    scales = result.matrix.scales
    assert scales.shape == (10, 2)
    for row in range(0, 300, 128):
        for col in range(0, 200, 128):
            block = np.s_[row : row + 128, col : col + 128]
            scale = scales[row // 32, col // 128]
            assert (scales[row // 32 : row // 32 + 4, col // 128] == scale).all()
            assert np.log2(scale).is_integer()
            assert 224 * scale < np.abs(exact[block]).max() <= 448 * scale
            expected = torch.from_numpy((exact[block] / scale).astype(np.float32)).to(torch.float8_e4m3fn)
            np.testing.assert_array_equal(result.matrix.codes[block], expected.view(torch.uint8).numpy())
    assert result.matrix.codes[130, 5] == 0x7E
    assert not np.isin(result.matrix.codes, [0x7F, 0xFF]).any()


def test_fp8_goes_back_to_bf16_exactly():
    bits = awkward(np.random.default_rng(6), 160, 200)
    fp8, stored = converted("fp8", bits)
    target = make_target("fp8", search=True)
    back = make_target("bf16", search=True).convert(fp8.matrix, target.panel(BF16))
    assert back.error[0] == 0
    np.testing.assert_array_equal(bf16_values(back.matrix.codes), stored)


def test_int4_of_fp8_is_searched_from_the_exact_weights():
    panel = PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32)
    matrix = random_matrix(np.random.default_rng(7), panel)
    exact = decode(matrix, panel)
    target = make_target("int4", search=True)
    found, by_way_of_bf16 = (
        ((decode(made.matrix, target.panel(panel)) - exact) ** 2).sum()
        for made in (target.convert(matrix, panel), target.convert(Matrix(bf16_bits(exact)), BF16))
    )
    assert found < by_way_of_bf16


def test_16_bits_are_rounded_once_even_beside_a_tie():
    """A product just above the middle of two bf16 numbers, where a float32 on the way would put it."""
    panel = PanelFormat(Dtype.INT8, ScaleDtype.F32)
    codes = np.arange(3, 127, 2)
    # c · s = (1 + 2⁻⁸) · (1 + tiny): s is the float32 above the quotient, so the product is above the tie.
    scales = np.nextafter(((1 + 2.0**-8) / codes).astype(np.float32), np.float32(2))
    exact = codes * scales.astype(np.float64)
    ties = exact.astype(np.float32) == 1 + 2.0**-8
    assert ties.any()
    matrix = Matrix(codes[ties].astype(np.uint8)[:, None], scales[ties][:, None])
    made = make_target("bf16", search=True).convert(matrix, panel).matrix
    assert (bf16_values(made.codes) == 1 + 2.0**-7).all()
