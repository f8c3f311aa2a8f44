"""Random layers, their files, and a float64 oracle with derived error bounds.

The oracle shares no code with the engine: it dequantises from the codes and scales that were packed and multiplies in
float64. Bounds follow each rounding of the engine: u = 2⁻²⁴ per float32 operation (γ_n = n·u / (1 − n·u), Higham, Accuracy and
Stability of Numerical Algorithms, §3.1), half a code for each int8 rounding that the oracle cannot repeat exactly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lsg import _core

F64 = npt.NDArray[np.float64]
U = 2.0**-24
SCALES = {
    "bf16": (_core.ScaleDtype.BF16, np.uint16),
    "f16": (_core.ScaleDtype.F16, np.uint16),
    "f32": (_core.ScaleDtype.F32, np.float32),
}
FORMATS = {
    "int4-bf16-g32": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.BF16, scale_k=32),
    "int4-f16-g128": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.F16, scale_k=128),
    "int4-f32-g64": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.F32, scale_k=64),
    "bf16": _core.PanelFormat(_core.Dtype.BF16),
    "f16": _core.PanelFormat(_core.Dtype.F16),
    "bf16-bias": _core.PanelFormat(_core.Dtype.BF16, bias=True),
}


def bf16_bits(x: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Truncate to bf16 (which rounding does not matter here: the result is the weight)."""
    return (np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_value(bits: npt.NDArray[np.uint16]) -> F64:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


@dataclass
class RandomMatrix:
    packed: _core.Matrix
    value: F64
    bias: F64


def random_matrix(rng: np.random.Generator, fmt: _core.PanelFormat, rows: int, cols: int) -> RandomMatrix:
    size = 1 / np.sqrt(cols)
    bias = np.zeros(rows)
    bias_arg = None
    if fmt.bias:
        bias_arg = rng.normal(size=rows).astype(np.float32)
        bias = bias_arg.astype(np.float64)
    if fmt.dtype == _core.Dtype.BF16:
        bits = bf16_bits(rng.normal(size=(rows, cols)) * size)
        return RandomMatrix(_core.Matrix(bits, bias=bias_arg), bf16_value(bits), bias)
    if fmt.dtype == _core.Dtype.F16:
        half = (rng.normal(size=(rows, cols)) * size).astype(np.float16)
        half.flat[0] = np.float16(6e-8)  # a subnormal
        return RandomMatrix(_core.Matrix(half.view(np.uint16), bias=bias_arg), half.astype(np.float64), bias)
    codes = rng.integers(0, 16, size=(rows, cols), dtype=np.uint8)
    groups = -(-cols // fmt.scale_k)
    scales = (rng.uniform(0.5, 1.5, size=(rows, groups)) * rng.choice([-1, 1], size=(rows, groups)) * size / 4)
    if fmt.scale_dtype == _core.ScaleDtype.BF16:
        raw: npt.NDArray[np.generic] = bf16_bits(scales)
        value = bf16_value(bf16_bits(scales))
    elif fmt.scale_dtype == _core.ScaleDtype.F16:
        raw = scales.astype(np.float16).view(np.uint16)
        value = scales.astype(np.float16).astype(np.float64)
    else:
        raw = scales.astype(np.float32)
        value = raw.astype(np.float64)
    weight = (codes.astype(np.float64) - 8) * np.repeat(value, fmt.scale_k, axis=1)[:, :cols]
    return RandomMatrix(_core.Matrix(codes, raw), weight, bias)


@dataclass
class RandomLayer:
    spec: _core.LayerSpec
    experts: list[tuple[RandomMatrix | None, RandomMatrix, RandomMatrix]]
    path: Path


def random_layer(
    path: Path,
    *,
    fmt: str,
    hidden: int,
    intermediate: int,
    experts: int = 4,
    gated: bool = True,
    unit_rows: int = 0,
    seed: int = 0,
) -> RandomLayer:
    """Write a layer file of random experts."""
    panel = FORMATS[fmt]
    # down's bias lies in the expert table, which only the converter of a later format writes.
    down = _core.PanelFormat(panel.dtype, panel.scale_dtype, scale_k=panel.scale_k)
    spec = _core.LayerSpec(
        layer_index=0,
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=gated,
        gate_up=panel,
        down=down,
        unit_rows=unit_rows,
    )
    rng = np.random.default_rng(seed)
    made = []
    data = bytearray(spec.file_bytes)
    data[: len(spec.header())] = spec.header()
    for e in range(experts):
        gate = random_matrix(rng, panel, intermediate, hidden) if gated else None
        up = random_matrix(rng, panel, intermediate, hidden)
        matrix = random_matrix(rng, down, hidden, intermediate)
        made.append((gate, up, matrix))
        records = _core.pack_expert(spec, gate.packed if gate else None, up.packed, matrix.packed)
        for unit in range(spec.num_units):
            at = spec.record_offset(unit, e)
            data[at : at + spec.record_bytes] = records[unit].tobytes()
    path.write_bytes(data)
    return RandomLayer(spec, made, path)


def forward(
    engine: _core.Engine,
    layer: int,
    hidden: npt.NDArray[np.generic],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    dtype: str = "f32",
) -> npt.NDArray[np.generic]:
    """Engine.forward on numpy arrays."""
    hidden, ids = np.ascontiguousarray(hidden), np.ascontiguousarray(ids)
    weights = np.ascontiguousarray(weights)
    out = np.full_like(hidden, np.float32(np.nan) if dtype == "f32" else 0x7FC0)
    engine.forward(
        layer,
        hidden.ctypes.data,
        ids.ctypes.data,
        weights.ctypes.data,
        out.ctypes.data,
        tokens=hidden.shape[0],
        top_k=ids.shape[1],
        dtype=dtype,
    )
    return out


def quantize_rows(x: npt.NDArray[np.float32]) -> tuple[F64, F64]:
    """Int8 in groups of 32 as kernels.h states it, in the same float32 steps: (dequantised, step) [..., K]."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 32) * 32), np.float32)
    padded[..., : x.shape[-1]] = x
    groups = padded.reshape(*padded.shape[:-1], -1, 32)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_code = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    codes = np.rint(groups * to_code)
    step = np.broadcast_to((largest / np.float32(127)).astype(np.float64), groups.shape)
    value = (codes.astype(np.float64) * step).reshape(padded.shape)[..., : x.shape[-1]]
    return value, step.reshape(padded.shape)[..., : x.shape[-1]]


def activation(kind: _core.Activation, gate: F64 | None, up: F64, alpha: float, limit: float) -> F64:
    def sigmoid(x: F64) -> F64:
        return 1 / (1 + np.exp(-x))

    act = _core.Activation
    if kind == act.RELU2:
        relu2 = np.maximum(up if gate is None else gate, 0) ** 2
        return relu2 if gate is None else relu2 * up
    if kind == act.GELU_TANH:
        x = up if gate is None else gate
        gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return gelu if gate is None else gelu * up
    if gate is None:
        return up * sigmoid(up)
    if kind == act.SILU:
        return gate * sigmoid(gate) * up
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if kind == act.SWIGLU_CLAMPED:
        return gate * sigmoid(gate) * up
    return gate * sigmoid(alpha * gate) * (up + 1)


def oracle(
    layer: RandomLayer,
    hidden: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    *,
    int8: bool,
    kind: _core.Activation = _core.Activation.SILU,
    alpha: float = 1.0,
    limit: float = 0.0,
) -> tuple[F64, F64]:
    """(out, bound) [tokens, H] in float64: what the engine must give, and how far off rounding can take it."""
    out = np.zeros(hidden.shape, np.float64)
    bound = np.zeros(hidden.shape, np.float64)
    spec = layer.spec
    x_all = quantize_rows(hidden)[0] if int8 else hidden.astype(np.float64)
    terms = ids.shape[1] * (spec.intermediate_size + spec.num_units) + 8
    for t, (token_ids, token_weights) in enumerate(zip(ids, weights, strict=True)):
        magnitude = np.zeros(spec.hidden_size)
        for e, w in zip(token_ids, token_weights.astype(np.float64), strict=True):
            if e < 0:
                continue
            gate, up, down = layer.experts[e]
            x = x_all[t]
            # +8: dequantising a group, adding its sums, the bias. Integer sums are exact.
            g_up = gamma(spec.hidden_size + 8)
            pre_up = up.value @ x + up.bias
            err_up = g_up * (np.abs(up.value) @ np.abs(x) + np.abs(up.bias))
            pre_gate, err_gate = None, np.zeros_like(err_up)
            if gate is not None:
                pre_gate = gate.value @ x + gate.bias
                err_gate = g_up * (np.abs(gate.value) @ np.abs(x) + np.abs(gate.bias))
            act = activation(kind, pre_gate, pre_up, alpha, limit) * w
            # How far the pre-activations' errors move it, by finite differences of the oracle itself (doubled for curvature), and
            # 32 units for Exp (kernels/activate-inl.h: about 2 ulp), the division and the products.
            moved = np.zeros_like(act)
            for sign_g in (-1, 1):
                for sign_u in (-1, 1):
                    shifted = activation(
                        kind, None if pre_gate is None else pre_gate + sign_g * err_gate, pre_up + sign_u * err_up, alpha, limit
                    )
                    moved = np.maximum(moved, np.abs(shifted * w - act))
            err_act = 2 * moved + 32 * U * np.abs(act) + 1e-30
            if int8:
                exact = act
                act, step = quantize_rows(act.astype(np.float32))
                # A rounding that the error can tip falls one step to either side; elsewhere only the step's own error stays.
                position = np.divide(exact, step, out=np.zeros_like(exact), where=step > 0)
                to_tie = np.abs(np.abs(position - np.trunc(position)) - 0.5) * step
                largest_error = err_act.max() * 2
                err_act = np.where(to_tie <= largest_error + 4 * U * np.abs(exact), step, 0) + largest_error
            out[t] += down.value @ act
            bound[t] += np.abs(down.value) @ err_act
            magnitude += np.abs(down.value) @ np.abs(act)
        bound[t] += gamma(terms) * magnitude
    return out, bound
