"""Zeros, signs, damage, and the same bytes however the work is cut."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from converting import make_target, parts
from target_oracle import COLS, SOURCES, decode, random_matrix

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype
from lsg.convert.targets import NAMES

BF16 = PanelFormat(Dtype.BF16)
QUANTISED = ["int4", "int8", "fp8", "mxfp4", "nvfp4"]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_of_both_signs_and_tiny_weights_are_nothing(name):
    bits = np.zeros((33, 40), np.uint16)
    bits[1] = 0x8000
    bits[2, 3] = 0x8001  # the smallest negative number
    target = make_target(name, search=True)
    result = target.convert(Matrix(bits), BF16)
    assert (np.abs(decode(result.matrix, target.panel(BF16))) <= 2.0**-133).all()
    if name in ("bf16", "keep"):
        assert result.matrix.codes.tobytes() == bits.tobytes()
    else:
        # One weight of 2⁻¹³³.
        assert max(result.error) <= 2.0**-266


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("exponent", [-120, -90, 95])
def test_extreme_magnitudes_stay_finite(name, exponent):
    values = np.random.default_rng(0).normal(size=(64, 64)) * 2.0**exponent
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    target = make_target(name, search=True)
    result = target.convert(Matrix(bits), BF16)
    stored = decode(result.matrix, target.panel(BF16))
    assert np.isfinite(stored).all()
    assert exponent == -120 or result.error[0] < 0.02 * result.error[1]
    if name == "fp8":
        assert not np.isin(result.matrix.codes, [0x7F, 0xFF]).any()


@pytest.mark.parametrize("name", QUANTISED)
def test_absurd_magnitudes_are_refused(name):
    bits = np.zeros((64, 64), np.uint16)
    bits[40, 7] = 0x7E00  # 4e37
    with pytest.raises(CheckpointError, match="far beyond any model's; the file is damaged"):
        make_target(name, search=True).convert(Matrix(bits), BF16)


@pytest.mark.parametrize(
    ("panel", "bad"),
    [
        (BF16, 0x7F80),
        (BF16, 0xFFC1),
        (PanelFormat(Dtype.F16), 0xFC00),
        (PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32), 0x7F),
        (PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32), 0xFF),
        (PanelFormat(Dtype.FP8_E5M2, ScaleDtype.F32), 0x7C),
        (PanelFormat(Dtype.FP8_E5M2, ScaleDtype.F32), 0xFE),
    ],
)
@pytest.mark.parametrize("name", ["keep", "int4", "bf16"])
def test_codes_that_are_no_numbers_are_refused(panel, bad, name):
    matrix = random_matrix(np.random.default_rng(1), panel)
    matrix.codes[300, 7] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity among its weights; the file is damaged"):
        make_target(name, search=True).convert(matrix, panel)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (ScaleDtype.F32, np.nan),
        (ScaleDtype.F16, 0x7C00),
        (ScaleDtype.BF16, 0xFF80),
        (ScaleDtype.FP8_E4M3, 0x7F),
        (ScaleDtype.E8M0, 0xFF),
    ],
)
@pytest.mark.parametrize("name", ["keep", "bf16"])
def test_scales_that_are_no_numbers_are_refused(dtype, bad, name):
    panel = PanelFormat(Dtype.INT4, dtype, scale_k=32)
    matrix = random_matrix(np.random.default_rng(1), panel)
    matrix.scales[300, 2] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity among its scales"):
        make_target(name, search=True).convert(matrix, panel)


@pytest.mark.parametrize("name", ["keep", "bf16"])
def test_a_zero_point_that_four_bits_cannot_have_is_refused(name):
    panel = PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32, zero_point=True)
    matrix = random_matrix(np.random.default_rng(1), panel)
    matrix.zero_points[300, 2] = 16  # a 15 in GPTQ's first version
    make_target(name, search=True).convert(matrix, panel)
    matrix.zero_points[300, 2] = 17
    with pytest.raises(CheckpointError, match="a zero point of 17 among its 4-bit codes"):
        make_target(name, search=True).convert(matrix, panel)


@pytest.mark.parametrize(("what", "parts_"), [("bias", (np.inf, 1.0)), ("global scale", (1.0, np.nan))])
def test_a_bias_or_global_scale_that_is_no_number_is_refused(what, parts_):
    panel = PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, bias=True, global_scale=True)
    good = random_matrix(np.random.default_rng(1), panel)
    bias = np.full(len(good.codes), parts_[0], np.float32)
    matrix = Matrix(good.codes, good.scales, None, bias, parts_[1])
    with pytest.raises(CheckpointError, match=f"NaN or infinity among its {what}"):
        make_target("keep", search=True).convert(matrix, panel)


@pytest.mark.parametrize("name", QUANTISED)
def test_rows_do_not_depend_on_the_rows_beside_them(name):
    """Halves of a matrix, cut at a block of rows, give the halves of its bytes."""
    whole = random_matrix(np.random.default_rng(2), BF16, 640).codes
    # The global scale is the matrix's own: both halves must have the same largest weight.
    whole[0, 0] = whole[384, 0] = 0x4080
    target = make_target(name, search=True)
    pieces = [target.convert(Matrix(part), BF16).matrix for part in (whole[:384], whole[384:])]
    together = target.convert(Matrix(whole), BF16).matrix
    for field in ("codes", "scales"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(piece, field) for piece in pieces]), getattr(together, field)
        )


@pytest.mark.parametrize("name", ["int4", "int8", "fp8", "bf16", "fp16", "mxfp4", "nvfp4"])
def test_threads_share_a_target(name):
    target = make_target(name, search=True)
    panel = SOURCES["fp8-f32-128x128"][1]
    matrices = [random_matrix(np.random.default_rng(seed), panel) for seed in range(4)]

    def result(matrix):
        made = target.convert(matrix, panel)
        return parts(made.matrix), made.error

    expected = [result(matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(result, matrices * 4)) == expected * 4


GOLDEN = {
    "int4": "8049c304ac2546a0",
    "int8": "8a7f95c41230787f",
    "fp8": "32980edc2fb8eff2",
    "fp16": "9fab4a6a9d43c0de",
    "mxfp4": "ee88526ecaa560bb",
    "nvfp4": "c313b988be726b01",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_same_bytes_as_ever(name):
    """A conversion that one machine began, another continues: the bytes must not depend on the machine."""
    # Integers only, so the input itself is the same everywhere.
    state = np.arange(1, 130 * COLS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (state >> np.uint64(48)).astype(np.uint16).reshape(130, COLS)
    bits = (bits & 0x80FF) | (0x3B00 + (bits & 0x0300))  # both signs, exponents of about 2⁻⁹ … 2⁻¹
    made = make_target(name, search=True).convert(Matrix(bits), BF16)
    digest = hashlib.sha256(repr([*parts(made.matrix)[:4], made.matrix.global_scale]).encode()).hexdigest()
    assert digest[:16] == GOLDEN[name]
