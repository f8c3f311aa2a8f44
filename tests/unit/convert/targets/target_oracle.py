"""Random matrices of every source format, and what FORMAT.md says they are worth, in float64.

It shares no code with the targets: 8-bit floats are torch's, fp4 is written out, scales are spread by index.
"""

import numpy as np
import torch

from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FLOAT8 = {Dtype.FP8_E4M3: torch.float8_e4m3fn, Dtype.FP8_E5M2: torch.float8_e5m2}
# More than one step of rows; no size is a multiple of a group of 32 or of a block of 128.
ROWS, COLS = 352, 208

SOURCES = {
    "bf16": ("bf16", PanelFormat(Dtype.BF16)),
    "bf16-bias": ("bf16", PanelFormat(Dtype.BF16, bias=True)),
    "fp16": ("fp16", PanelFormat(Dtype.F16)),
    "fp8-f32-128x128": ("fp8", PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, scale_rows=32, scale_k=128)),
    "fp8-bf16-128x128": ("fp8", PanelFormat(Dtype.FP8_E4M3, ScaleDtype.BF16, scale_rows=32, scale_k=128)),
    "fp8-e8m0-32x32": ("fp8", PanelFormat(Dtype.FP8_E4M3, ScaleDtype.E8M0, scale_rows=32, scale_k=32)),
    "fp8-row-bias": ("fp8", PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, bias=True)),
    "e5m2-row": ("fp8", PanelFormat(Dtype.FP8_E5M2, ScaleDtype.F16)),
    "int8-row": ("int8", PanelFormat(Dtype.INT8, ScaleDtype.F32)),
    "int8-g128-zero": ("int8", PanelFormat(Dtype.INT8, ScaleDtype.BF16, scale_k=128, zero_point=True)),
    "int4-g32": ("int4", PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32)),
    "int4-g128-zero": ("int4", PanelFormat(Dtype.INT4, ScaleDtype.F16, scale_k=128, zero_point=True)),
    "int4-row-f32-bias": ("int4", PanelFormat(Dtype.INT4, ScaleDtype.F32, bias=True)),
    "mxfp4-bias": ("mxfp4", PanelFormat(Dtype.FP4_E2M1, ScaleDtype.E8M0, scale_k=32, bias=True)),
    "nvfp4": ("nvfp4", PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True)),
}


def float8(codes, dtype):
    return torch.from_numpy(np.array(codes, np.uint8)).view(dtype).double().numpy()


def bf16_bits(values):
    return torch.from_numpy(np.array(values, np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def bf16_values(bits):
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).double().numpy()


def half_values(bits, dtype):
    return bf16_values(bits) if dtype == Dtype.BF16 else bits.view(np.float16).astype(np.float64)


def scale_values(raw, dtype):
    if dtype == ScaleDtype.E8M0:
        return 2.0 ** (raw.astype(np.float64) - 127)
    if dtype == ScaleDtype.FP8_E4M3:
        return float8(raw, torch.float8_e4m3fn)
    if dtype == ScaleDtype.BF16:
        return bf16_values(raw)
    return raw.view(np.float16 if dtype == ScaleDtype.F16 else np.float32).astype(np.float64)


def decode(matrix, panel):
    """(code - zero_point) · scale · global_scale, each where present; int4 without zero points: code - 8."""
    codes = matrix.codes
    if panel.dtype in (Dtype.BF16, Dtype.F16):
        return half_values(codes.view(np.uint16), panel.dtype)
    if panel.dtype in FLOAT8:
        value = float8(codes, FLOAT8[panel.dtype])
    elif panel.dtype == Dtype.FP4_E2M1:
        value = E2M1[codes]
    elif panel.zero_point:
        value = codes.astype(np.float64)
    elif panel.dtype == Dtype.INT8:
        value = codes.view(np.int8).astype(np.float64)
    else:
        value = codes.astype(np.float64) - 8
    rows, cols = codes.shape
    groups = np.arange(cols) // panel.scale_k if panel.scale_k else np.zeros(cols, int)
    at = np.ix_(np.arange(rows) // panel.scale_rows, groups)
    if panel.zero_point:
        value = value - matrix.zero_points.astype(np.float64)[at]
    value = value * scale_values(matrix.scales, panel.scale_dtype)[at]
    return value if matrix.global_scale is None else value * np.float64(np.float32(matrix.global_scale))


def nearest_half(values, dtype):
    """The nearest finite numbers of a 16-bit type, ties to the even pattern; looks through all of them."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        table = half_values(bits, dtype)
    bits = bits[np.isfinite(table) & (bits != 0x8000)]
    order = np.argsort(half_values(bits, dtype))
    bits, table = bits[order], half_values(bits, dtype)[order]
    above = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    below = above - 1
    to_above, to_below = table[above] - values, values - table[below]
    up = (to_above < to_below) | ((to_above == to_below) & (bits[above] % 2 == 0))
    return np.where(up, table[above], table[below])


def random_scales(rng, dtype, shape, size):
    wanted = rng.uniform(0.5, 1.5, shape) * size
    if dtype == ScaleDtype.E8M0:
        return (np.rint(np.log2(wanted)) + 127).astype(np.uint8)
    if dtype == ScaleDtype.FP8_E4M3:
        return rng.integers(0, 0x7F, shape, np.uint8)
    if dtype == ScaleDtype.BF16:
        return bf16_bits(wanted)
    return wanted.astype(np.float16).view(np.uint16) if dtype == ScaleDtype.F16 else wanted.astype(np.float32)


def random_matrix(rng, panel, rows=ROWS, cols=COLS):
    bias = rng.normal(size=rows).astype(np.float32) if panel.bias else None
    shape = (rows, cols)
    if panel.scale_dtype == ScaleDtype.NONE:
        values = rng.standard_t(5, shape) * 0.02
        bits = bf16_bits(values) if panel.dtype == Dtype.BF16 else values.astype(np.float16).view(np.uint16)
        return Matrix(bits, bias=bias)
    if panel.dtype in FLOAT8:
        single = torch.from_numpy(rng.normal(size=shape) * 100).float()
        codes = single.clamp(-448, 448).to(FLOAT8[panel.dtype]).view(torch.uint8).numpy()
    else:
        codes = rng.integers(0, 256 if panel.dtype == Dtype.INT8 else 16, shape, np.uint8)
    groups = (-(-rows // panel.scale_rows), -(-cols // panel.scale_k) if panel.scale_k else 1)
    zero_points = None
    if panel.zero_point:
        zero_points = rng.integers(0, 256 if panel.dtype == Dtype.INT8 else 16, groups, np.uint8)
    scales = random_scales(rng, panel.scale_dtype, groups, 1e-3)
    return Matrix(codes, scales, zero_points, bias, 3.1e-4 if panel.global_scale else None)
