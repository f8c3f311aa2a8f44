"""What bits are worth, against torch's types, for every code."""

import numpy as np
import pytest
import torch

from lsg.convert.values import E2M1_VALUES, E4M3_VALUES, E5M2_VALUES, E8M0_VALUES, is_finite, to_float32

FLOAT8 = {"F8_E4M3": (E4M3_VALUES, torch.float8_e4m3fn), "F8_E5M2": (E5M2_VALUES, torch.float8_e5m2)}
HALF = {"BF16": torch.bfloat16, "F16": torch.float16}


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_values_are_torchs(name):
    values, dtype = FLOAT8[name]
    decoded = torch.from_numpy(np.arange(256, dtype=np.uint8)).view(dtype).double().numpy()
    np.testing.assert_array_equal(values, np.where(np.isfinite(decoded), decoded, np.nan))


def test_fp4_values_are_the_standards():
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(E2M1_VALUES, magnitudes + [-x for x in magnitudes])


def test_scale_exponents():
    np.testing.assert_array_equal(E8M0_VALUES[:255], 2.0 ** (np.arange(255.0) - 127))
    assert np.isnan(E8M0_VALUES[255])


@pytest.mark.parametrize("name", HALF)
def test_16_bit_values_are_torchs(name):
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(HALF[name]).float().numpy()
    np.testing.assert_array_equal(to_float32(bits, name), expected)


@pytest.mark.parametrize("name", [*FLOAT8, *HALF])
def test_every_pattern_that_is_no_number_is_told(name):
    dtype = FLOAT8[name][1] if name in FLOAT8 else HALF[name]
    bits = np.arange(256 if name in FLOAT8 else 1 << 16)
    raw = bits.astype(np.uint8 if name in FLOAT8 else np.uint16)
    expected = np.isfinite(torch.from_numpy(raw.view(f"i{raw.itemsize}")).view(dtype).float().numpy())
    found = [is_finite(raw[i : i + 1].view(np.uint8), name) for i in bits]
    np.testing.assert_array_equal(found, expected)
