"""int4 quantisation: against an exhaustive search, the same on every level, and what it refuses."""

import numpy as np
import pytest
from layers import bf16_bits, bf16_value

from lsg import CheckpointError, _core

ISAS = [isa.name.lower() for isa in _core.isa_levels()]
INT4 = _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.BF16, scale_k=32)


def quantize(bits, dtype=_core.Dtype.BF16, **options):
    """Codes, scales, squared error, squared norm."""
    made, error = _core.convert_matrix(_core.Matrix(bits), _core.PanelFormat(dtype), INT4, **options)
    return made.codes, made.scales, *error


def dequantize(codes, scales, cols):
    return (codes.astype(np.float64) - 8) * np.repeat(bf16_value(scales), 32, axis=1)[:, :cols]


def test_errors_are_what_they_say_and_search_helps():
    rng = np.random.default_rng(0)
    bits = bf16_bits(rng.normal(size=(64, 256)) * rng.uniform(0.01, 3, size=(64, 1)))
    weight = bf16_value(bits)
    measured = {}
    for search in (True, False):
        codes, scales, error, norm = quantize(bits, search=search)
        assert codes.max() <= 15
        exact = ((weight - dequantize(codes, scales, 256)) ** 2).sum()
        # 32 float32 terms a group, then double.
        assert abs(error - exact) <= 64 * 2.0**-24 * exact
        assert abs(norm - (weight**2).sum()) <= 64 * 2.0**-24 * norm
        measured[search] = exact
    assert measured[True] < 0.92 * measured[False]


def test_search_is_near_the_best_scale_there_is():
    """Against every bf16 scale within a factor of two, by brute force."""
    rng = np.random.default_rng(1)
    bits = bf16_bits(rng.normal(size=(40, 32)))
    _, _, error, _ = quantize(bits)
    best_total = 0.0
    for row in bf16_value(bits):
        extreme = row[np.abs(row).argmax()]
        candidates = bf16_value(
            bf16_bits(
                np.concatenate([extreme / np.linspace(-12, -4, 800), extreme / np.linspace(4, 12, 800)])
            )
        )
        q = np.clip(np.rint(row[None] / candidates[:, None]), -8, 7)
        best_total += ((row[None] - q * candidates[:, None]) ** 2).sum(axis=1).min()
    # It tries 16 scales of one sign, each refined by least squares; 1600 of both find a few per cent more.
    assert best_total <= error <= 1.06 * best_total


def test_no_search_keeps_every_weight_within_half_a_step_or_the_clamp():
    rng = np.random.default_rng(2)
    bits = bf16_bits(rng.normal(size=(16, 64)))
    weight = bf16_value(bits)
    codes, scales, _, _ = quantize(bits, search=False)
    step = np.abs(np.repeat(bf16_value(scales), 32, axis=1))
    # The extreme maps to -8 up to the scale's bf16 rounding (2⁻⁹ of 8 steps); its mirror image is clamped.
    assert (np.abs(weight - dequantize(codes, scales, 64)) <= step * (1 + 8 * 2.0**-8)).all()
    inside = np.abs(weight) <= 7 * step
    assert (
        np.abs(weight - dequantize(codes, scales, 64))[inside] <= step[inside] * (0.5 + 8 * 2.0**-8)
    ).all()


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("dtype", [_core.Dtype.BF16, _core.Dtype.F16])
def test_same_bytes_on_every_level(dtype: _core.Dtype, search: bool):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(8, 100)) * 10.0 ** rng.uniform(-4, 3, size=(8, 100))
    bits = bf16_bits(values) if dtype == _core.Dtype.BF16 else values.astype(np.float16).view(np.uint16)
    results = {
        tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in made)
        for made in (quantize(bits, dtype, search=search, isa=isa) for isa in ISAS)
    }
    assert len(results) == 1


def test_zero_and_tiny_groups_are_zero():
    bits = np.zeros((2, 40), np.uint16)
    bits[1, 3] = 1  # the smallest subnormal
    codes, scales, error, norm = quantize(bits)
    assert (codes == 8).all()
    assert not scales.any()
    assert error == norm <= 2.0**-266


@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0])
def test_non_finite_weights_are_refused(bad: int):
    bits = np.zeros((4, 64), np.uint16)
    bits[2, 33] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity among its weights"):
        quantize(bits)
