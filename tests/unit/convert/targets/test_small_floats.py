"""Small floats against torch's, for every code and for numbers of every exponent."""

import numpy as np
import pytest
import torch
from target_oracle import E2M1 as E2M1_VALUES

from lsg.convert.targets.small_floats import E2M1, E4M3, E5M2, E8M0_VALUES, rounded

TORCH = {"e4m3": (E4M3, torch.float8_e4m3fn), "e5m2": (E5M2, torch.float8_e5m2)}


def every_exponent():
    """float32 numbers of all exponents and signs: ties of every small mantissa, zeros, subnormals."""
    top = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([top | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("name", TORCH)
def test_float8_codes_are_torchs(name):
    ours, dtype = TORCH[name]
    values = every_exponent()
    expected = torch.from_numpy(np.clip(values, -ours.largest, ours.largest)).to(dtype).view(torch.uint8)
    np.testing.assert_array_equal(ours.encode(values), expected.numpy())
    decoded = torch.from_numpy(np.arange(256, dtype=np.uint8)).view(dtype).double().numpy()
    np.testing.assert_array_equal(ours.values, np.where(np.isfinite(decoded), decoded, np.nan))


def test_fp4_codes_are_the_nearest():
    np.testing.assert_array_equal(E2M1.values, E2M1_VALUES)
    values = every_exponent()
    distance = np.abs(np.minimum(np.abs(values), 6).astype(np.float64)[:, None] - E2M1_VALUES[:8])
    nearest = distance.argmin(axis=1)
    # argmin takes the lower of two equally near ones; ties go to the even code.
    higher = np.minimum(nearest + 1, 7)
    tie = distance[np.arange(len(values)), nearest] == distance[np.arange(len(values)), higher]
    nearest = np.where(tie & (nearest % 2 == 1), higher, nearest)
    np.testing.assert_array_equal(E2M1.encode(values), nearest | np.where(np.signbit(values), 8, 0))


def test_scale_exponents():
    np.testing.assert_array_equal(E8M0_VALUES[:255], 2.0 ** (np.arange(255.0) - 127))
    assert np.isnan(E8M0_VALUES[255])


def test_rounding_float64_to_bf16_digits_once():
    # 1 + 2⁻⁸ + 2⁻⁴⁰ is above the tie, but a detour through float32 would make it the tie, then 1.
    values = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-134, 3 * 2.0**-134])
    expected = np.array([1 + 2.0**-7, 1, 1 + 4 * 2.0**-8, 0, 2 * 2.0**-133])
    np.testing.assert_array_equal(rounded(values, 7, -126), expected)
