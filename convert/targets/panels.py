"""The formats that numbers are converted to.

int4    Symmetric, groups of 32 inputs, bf16 scales, 4.5 bits a weight: the engine's fastest. A group's scale
        may be negative, so that its largest weight becomes the one code more that -8 is.

int8    Likewise, 8.5 bits. Relative squared error, measured on 768 × 2048 normal weights and on heavy tails
        (Student's t, 4 degrees): groups of 32 2.9e-5 and 5.4e-5, of 128 4.2e-5 and 1.2e-4, whole rows 6.8e-5
        and 4.8e-4. The scales of down_proj take the same room for 32 and 128, because a unit has few of its
        columns. Searching the scale gains 1 to 3 %, so it is not done.

fp8     e4m3, blocks of 128 × 128 as in published checkpoints, which fused GPU kernels take as they are; f32
        scales (one for every 32 rows in the file, so each is there four times) that are powers of two: 0.5
        to 1.5 % more squared error than amax / 448 (measured, as above), and the way back to bf16 is exact.
        int8 has less than a tenth of this error in 6 % more bytes.

mxfp4   e2m1, groups of 32 that share a power of two: 4.25 bits.

nvfp4   e2m1, groups of 16 with an e4m3 scale, and a float32 scale for the matrix: 4.5 bits.

Invariant: no panel has a bias here; a matrix brings its own.
"""

from typing import Final

from lsg._core import Dtype, PanelFormat, ScaleDtype

PANELS: Final = {
    "int4": PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32),
    "int8": PanelFormat(Dtype.INT8, ScaleDtype.BF16, scale_k=32),
    "fp8": PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, scale_rows=32, scale_k=128),
    "bf16": PanelFormat(Dtype.BF16),
    "fp16": PanelFormat(Dtype.F16),
    "mxfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.E8M0, scale_k=32),
    "nvfp4": PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True),
}
