import numpy as np
import pytest
import torch

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat, ScaleDtype, quantize_int4
from lsg.convert.targets import make_target

TORCH = {Dtype.BF16: torch.bfloat16, Dtype.F16: torch.float16}


def finite_bits(dtype, largest):
    """Every bit pattern of the dtype whose magnitude is at most `largest`, as a matrix of 64 columns."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.int16)).view(TORCH[dtype]).float().numpy()
    bits = bits[np.abs(values) <= largest]
    return np.resize(bits, (-(-len(bits) // 64), 64))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", Dtype.BF16), ("fp16", Dtype.F16)])
def test_same_dtype_passes_through(name, dtype):
    panel = PanelFormat(dtype)
    target = make_target(name, search=False)
    matrix = Matrix(finite_bits(dtype, np.inf))
    converted = target.convert(matrix, panel)
    assert target.panel(panel) == panel
    assert converted.error is None
    np.testing.assert_array_equal(converted.matrix.codes, matrix.codes)


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
    with pytest.raises(CheckpointError, match="beyond fp16, which ends at 65504"):
        make_target("fp16", search=False).convert(Matrix(bits), PanelFormat(Dtype.BF16))


@pytest.mark.parametrize("search", [True, False])
def test_int4_is_the_cores(search):
    bits = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).bfloat16().view(torch.int16)
    bits = bits.numpy().view(np.uint16)
    target = make_target("int4", search=search)
    converted = target.convert(Matrix(bits), PanelFormat(Dtype.BF16))
    codes, scales, error, norm = quantize_int4(bits, Dtype.BF16, search=search)
    np.testing.assert_array_equal(converted.matrix.codes, codes)
    np.testing.assert_array_equal(converted.matrix.scales, scales)
    assert converted.error == (error, norm)
    assert target.panel(PanelFormat(Dtype.F16)) == PanelFormat(
        Dtype.INT4, ScaleDtype.BF16, scale_rows=1, scale_k=32
    )


@pytest.mark.parametrize("name", ["int4", "bf16", "fp16"])
def test_quantised_sources_have_no_way_yet(name):
    with pytest.raises(CheckpointError, match="stored as int8 cannot be converted"):
        make_target(name, search=False).panel(PanelFormat(Dtype.INT8, ScaleDtype.F32))
