"""The 16-bit targets on 16-bit sources, for every number there is, and what fp16 and bf16 refuse."""

import numpy as np
import pytest
import torch
from converting import make_target

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype

TORCH = {Dtype.BF16: torch.bfloat16, Dtype.F16: torch.float16}


def finite_bits(dtype, largest):
    """Every bit pattern of the dtype whose magnitude is at most `largest`, as a matrix of 64 columns."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.int16)).view(TORCH[dtype]).float().numpy()
    bits = bits[np.abs(values) <= largest]
    return np.resize(bits, (-(-len(bits) // 64), 64))


@pytest.mark.parametrize(
    ("name", "source", "target"), [("bf16", Dtype.F16, Dtype.BF16), ("fp16", Dtype.BF16, Dtype.F16)]
)
def test_other_dtype_rounds_as_torch_does_for_every_number(name, source, target):
    bits = finite_bits(source, 65504.0)
    converted = make_target(name, search=False).convert(Matrix(bits), PanelFormat(source))
    values = torch.from_numpy(bits.view(np.int16)).view(TORCH[source])
    expected = values.float().to(TORCH[target])
    np.testing.assert_array_equal(converted.matrix.codes.view(np.int16), expected.view(torch.int16).numpy())
    error = (expected.double() - values.double()).square().sum().item()
    norm = values.double().square().sum().item()
    assert converted.error == pytest.approx((error, norm), rel=1e-12)


@pytest.mark.parametrize("value", [65536.0, -1e30])
def test_fp16_refuses_what_it_cannot_hold(value):
    weights = torch.zeros(40, 32, dtype=torch.bfloat16)
    weights[33, 5] = value
    bits = weights.view(torch.int16).numpy().view(np.uint16)
    with pytest.raises(CheckpointError, match=r"beyond fp16, which ends at 65504; .* --experts bf16"):
        make_target("fp16", search=False).convert(Matrix(bits), PanelFormat(Dtype.BF16))


def test_bf16_refuses_what_it_cannot_hold():
    matrix = Matrix(np.full((2, 32), 127, np.uint8), np.full((2, 1), 3e38, np.float32))
    with pytest.raises(CheckpointError, match=r"3\.81e\+40 is beyond bf16"):
        make_target("bf16", search=False).convert(matrix, PanelFormat(Dtype.INT8, ScaleDtype.F32))
