"""Random layers, their files, and a float64 oracle with derived error bounds.

The oracle shares no code with the engine: it dequantises from the codes and scales that were packed and
multiplies in float64. Bounds follow each rounding of the engine: u = 2⁻²⁴ per float32 operation (γ_n = n·u /
(1 − n·u), Higham, Accuracy and Stability of Numerical Algorithms, §3.1), and one int8 step for each rounding
that an error can tip to the other side.
"""

import enum
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lsg import _core

F64 = npt.NDArray[np.float64]
U = 2.0**-24
U_BF16 = 2.0**-8  # eight significant bits, to nearest
FORMATS = {
    "int4-bf16-g32": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.BF16, scale_k=32),
    "int4-f16-g128-zero": _core.PanelFormat(
        _core.Dtype.INT4, _core.ScaleDtype.F16, scale_k=128, zero_point=True
    ),
    "int4-f32-g64": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.F32, scale_k=64),
    "int4-bf16-g16": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.BF16, scale_k=16),
    "int4-f16-row": _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.F16),
    "int8-bf16-g32": _core.PanelFormat(_core.Dtype.INT8, _core.ScaleDtype.BF16, scale_k=32),
    "int8-f16-row": _core.PanelFormat(_core.Dtype.INT8, _core.ScaleDtype.F16),
    "int8-f32-row-zero": _core.PanelFormat(_core.Dtype.INT8, _core.ScaleDtype.F32, zero_point=True),
    "fp8-f32-32x128": _core.PanelFormat(
        _core.Dtype.FP8_E4M3, _core.ScaleDtype.F32, scale_rows=32, scale_k=128
    ),
    "fp8-f32-row": _core.PanelFormat(_core.Dtype.FP8_E4M3, _core.ScaleDtype.F32),
    "fp8-e8m0-32x32": _core.PanelFormat(
        _core.Dtype.FP8_E4M3, _core.ScaleDtype.E8M0, scale_rows=32, scale_k=32
    ),
    "fp8-bf16-32x128": _core.PanelFormat(
        _core.Dtype.FP8_E4M3, _core.ScaleDtype.BF16, scale_rows=32, scale_k=128
    ),
    "fp8-f16-32x128": _core.PanelFormat(
        _core.Dtype.FP8_E4M3, _core.ScaleDtype.F16, scale_rows=32, scale_k=128
    ),
    "e5m2-f32-row": _core.PanelFormat(_core.Dtype.FP8_E5M2, _core.ScaleDtype.F32),
    "e5m2-bf16-g32": _core.PanelFormat(_core.Dtype.FP8_E5M2, _core.ScaleDtype.BF16, scale_k=32),
    "mxfp4-bias": _core.PanelFormat(_core.Dtype.FP4_E2M1, _core.ScaleDtype.E8M0, scale_k=32, bias=True),
    "nvfp4": _core.PanelFormat(
        _core.Dtype.FP4_E2M1, _core.ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True
    ),
    "bf16": _core.PanelFormat(_core.Dtype.BF16),
    "f16": _core.PanelFormat(_core.Dtype.F16),
    "bf16-bias": _core.PanelFormat(_core.Dtype.BF16, bias=True),
    "int4-f16-g128-zero-order": _core.PanelFormat(
        _core.Dtype.INT4, _core.ScaleDtype.F16, scale_k=128, zero_point=True, k_permutation=True
    ),
    "bf16-order": _core.PanelFormat(_core.Dtype.BF16, k_permutation=True),
}


def bf16_bits(x: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Truncate to bf16 (which rounding does not matter here: the result is the weight)."""
    return (np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_value(bits: npt.NDArray[np.uint16]) -> F64:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def round_bf16(x: npt.NDArray[np.float32]) -> F64:
    """To nearest bf16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return bf16_value(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


@dataclass
class RandomMatrix:
    """`value` has the columns as they are packed: column k multiplies input `order[k]`.

    `coarse`: how far off a weight's rounding to int8 may be in a group of 128 whose largest scale is its own
    (int8_groups-inl.h); None where no level does that.
    """

    packed: _core.Matrix
    value: F64
    bias: F64
    order: npt.NDArray[np.uint32] | None = None
    coarse: F64 | None = None

    def takes(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The inputs in the columns' order."""
        return x if self.order is None else x[..., self.order]


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def float8(codes: npt.NDArray[np.uint8], exponent_bits: int) -> F64:
    """IEEE-like 8-bit float from its definition: sign, exponent, mantissa."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = (codes.astype(np.int64) >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2.0**mantissa_bits
    magnitude = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias)
    )
    return np.where(codes & 0x80, -magnitude, magnitude)


def random_scales(
    rng: np.random.Generator, dtype: _core.ScaleDtype, shape: tuple[int, int], size: float
) -> tuple[npt.NDArray[np.generic], F64]:
    """Raw scales of a dtype, and their values."""
    wanted = rng.uniform(0.5, 1.5, size=shape) * size
    if dtype == _core.ScaleDtype.E8M0:
        raw = (np.rint(np.log2(wanted)) + 127).astype(np.uint8)
        return raw, 2.0 ** (raw.astype(np.float64) - 127)
    if dtype == _core.ScaleDtype.FP8_E4M3:
        raw = rng.integers(0, 0x50, shape, np.uint8)  # subnormals to 8
        return raw, float8(raw, 4)
    wanted *= rng.choice([-1, 1], size=shape)
    if dtype == _core.ScaleDtype.BF16:
        bits = bf16_bits(wanted)
        return bits, bf16_value(bits)
    if dtype == _core.ScaleDtype.F16:
        half = wanted.astype(np.float16)
        return half.view(np.uint16), half.astype(np.float64)
    single = wanted.astype(np.float32)
    return single, single.astype(np.float64)


def random_codes(
    rng: np.random.Generator, fmt: _core.PanelFormat, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.generic], F64, float]:
    """Raw codes, their values before zero point and scale, and a typical magnitude of those values."""
    dtype = _core.Dtype
    if fmt.dtype in (dtype.INT4, dtype.FP4_E2M1):
        codes = rng.integers(0, 16, shape, np.uint8)
        if fmt.dtype == dtype.FP4_E2M1:
            return codes, E2M1[codes], 3
        return codes, codes.astype(np.float64) - (0 if fmt.zero_point else 8), 5
    if fmt.dtype == dtype.INT8:
        codes = rng.integers(0, 256, shape, np.uint8)
        return codes, (codes if fmt.zero_point else codes.view(np.int8)).astype(np.float64), 80
    if fmt.dtype in (dtype.FP8_E4M3, dtype.FP8_E5M2):
        exponent_bits = 4 if fmt.dtype == dtype.FP8_E4M3 else 5
        # Each of 16 outputs has a largest magnitude of its own, of the next 16 all have the same.
        largest = rng.integers(0x28, 0x5F, (shape[0], 1), np.uint8)
        largest[np.arange(shape[0]) // 16 % 2 == 1] = 0x5F
        codes = rng.integers(0, largest, shape, np.uint8) | (rng.integers(0, 2, shape, np.uint8) << 7)
        return codes, float8(codes, exponent_bits), 20
    values = rng.normal(size=shape)
    if fmt.dtype == dtype.BF16:
        bits = bf16_bits(values / np.sqrt(shape[1]))
        return bits, bf16_value(bits), 1
    half = (values / np.sqrt(shape[1])).astype(np.float16)
    half.flat[0] = np.float16(6e-8)  # a subnormal
    return half.view(np.uint16), half.astype(np.float64), 1


FP8 = (_core.Dtype.FP8_E4M3, _core.Dtype.FP8_E5M2)


def has_coarse_int8(fmt: _core.PanelFormat) -> bool:
    """Whether some level rounds such weights to int8 in groups of 128."""
    dtype = _core.Dtype
    if fmt.dtype == dtype.INT8:
        return not fmt.zero_point
    return fmt.dtype in (dtype.INT4, dtype.FP4_E2M1, *FP8)


def coarse_error_of_codes(fmt: _core.PanelFormat, value: F64) -> F64:
    """How far off that may be, in units of the group's largest scale, for codes of such values [N, 1]."""
    if fmt.dtype in FP8:
        # Half a step of a 127th of the largest magnitude of 16 outputs, which is at most twice its own. Or
        # 0.62 steps, of a 127th of its own or of a unit, and half a unit; which is at most a 4096th of the
        # 16 outputs' largest.
        largest = np.abs(value).max(axis=1, keepdims=True)
        unit = largest.max() / 4096
        return np.maximum(largest / 127, 0.62 * np.maximum(largest / 127, unit) + 0.5 * unit)
    if fmt.dtype == _core.Dtype.INT4:
        step = 16 / 112 if fmt.zero_point else 8 / 120
    else:
        step = 6 / 120 if fmt.dtype == _core.Dtype.FP4_E2M1 else 128 / 127
    return np.full((len(value), 1), 0.57 * step)


def random_matrix(
    rng: np.random.Generator,
    fmt: _core.PanelFormat,
    rows: int,
    cols: int,
    order: npt.NDArray[np.uint32] | None = None,
) -> RandomMatrix:
    raw, value, typical = random_codes(rng, fmt, (rows, cols))
    codes_error = coarse_error_of_codes(fmt, value)
    scales = zero_points = bias = global_scale = coarse = None
    if fmt.scale_dtype != _core.ScaleDtype.NONE:
        scale_k = fmt.scale_k or cols
        shape = (-(-rows // fmt.scale_rows), -(-cols // scale_k))
        scales, scale_value = random_scales(rng, fmt.scale_dtype, shape, 1 / (typical * np.sqrt(cols)))

        def spread(x: npt.NDArray[np.generic]) -> F64:
            return np.repeat(np.repeat(x, fmt.scale_rows, axis=0)[:rows], scale_k, axis=1)[:, :cols].astype(
                np.float64
            )

        if fmt.zero_point:
            zero_points = rng.integers(0, 17 if fmt.dtype == _core.Dtype.INT4 else 256, shape, np.uint8)
            value = value - spread(zero_points)
        value = value * spread(scale_value)
        if has_coarse_int8(fmt):
            coarse = codes_error * np.abs(spread(scale_value))
    if fmt.global_scale:
        global_scale = float(np.float32(rng.uniform(0.02, 0.1)))
        value = value * global_scale
        coarse = None if coarse is None else coarse * global_scale
    if fmt.bias:
        bias = rng.normal(size=rows).astype(np.float32)
    packed = _core.Matrix(raw, scales, zero_points, bias, global_scale, order)
    offset = np.zeros(rows) if bias is None else bias.astype(np.float64)
    return RandomMatrix(packed, value, offset, order, coarse)


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
    filled: int | None = None,
    down_fmt: str | None = None,
) -> RandomLayer:
    """Write a layer file of random experts.

    filled: only the first so many have weights, others zeros. down_fmt: of down, where it is another.
    """
    panel, down_panel = FORMATS[fmt], FORMATS[(down_fmt or fmt).removesuffix("-order")]
    spec = _core.LayerSpec(
        layer_index=0,
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=gated,
        gate_up=panel,
        down=down_panel,
        unit_rows=unit_rows,
    )
    rng = np.random.default_rng(seed)
    made = []
    data = bytearray(spec.file_bytes)
    data[: len(spec.header())] = spec.header()
    for e in range(experts if filled is None else filled):
        order = rng.permutation(hidden).astype(np.uint32) if panel.k_permutation else None
        gate = random_matrix(rng, panel, intermediate, hidden, order) if gated else None
        up = random_matrix(rng, panel, intermediate, hidden, order)
        down = random_matrix(rng, down_panel, hidden, intermediate)
        made.append((gate, up, down))
        packed = (gate.packed if gate else None, up.packed, down.packed)
        records = _core.pack_expert(spec, *packed)
        for at, entry in _core.pack_table(spec, e, *packed):
            data[at : at + len(entry)] = entry
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


def quantize_rows(x: npt.NDArray[np.float32], group: int = 32) -> tuple[F64, F64]:
    """Int8 in groups, in the float32 steps that kernels.h states: (dequantised, step) [..., K]."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // group) * group), np.float32)
    padded[..., : x.shape[-1]] = x
    groups = padded.reshape(*padded.shape[:-1], -1, group)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_code = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    codes = np.rint(groups * to_code)
    step = np.broadcast_to((largest / np.float32(127)).astype(np.float64), groups.shape)
    value = (codes.astype(np.float64) * step).reshape(padded.shape)[..., : x.shape[-1]]
    return value, step.reshape(padded.shape)[..., : x.shape[-1]]


def coarse_error(matrix: RandomMatrix, dtype: _core.Dtype, *, aligned: bool) -> F64:
    """What rounding to int8 in groups of 128 columns can do to each weight.

    Nothing where rows of integers have one scale. aligned: the groups are columns 0 … 127 and so on, so
    weights of four bits are exact where their scale is the largest. Else groups may begin anywhere.
    """
    assert matrix.coarse is not None
    if dtype not in FP8 and (matrix.coarse == matrix.coarse[:, :1]).all():
        return np.zeros_like(matrix.coarse)
    if not aligned:
        return np.broadcast_to(matrix.coarse.max(axis=1, keepdims=True), matrix.coarse.shape)
    rows, cols = matrix.coarse.shape
    padded = np.zeros((rows, -(-cols // 128) * 128))
    padded[:, :cols] = matrix.coarse
    groups = padded.reshape(rows, -1, 128)
    largest = groups.max(axis=-1, keepdims=True)
    exact = (groups == largest) & (dtype in (_core.Dtype.INT4, _core.Dtype.FP4_E2M1))
    return np.where(exact, 0, largest).reshape(rows, -1)[:, :cols]


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
    if kind == act.SITU:
        soft = limit * np.tanh(up / limit) if limit else up
        return alpha * np.tanh(gate / alpha) * sigmoid(gate) * soft
    if kind == act.SILU_CLAMPED:
        return np.minimum(gate * sigmoid(gate), limit) * np.clip(up, -limit, limit)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if kind == act.SWIGLU_CLAMPED:
        return gate * sigmoid(gate) * up
    return gate * sigmoid(alpha * gate) * (up + 1)


class Rounding(enum.Enum):
    """What inputs, and activations before the down projection, are rounded to before they meet weights."""

    NONE = enum.auto()
    # In groups of 32.
    INT8 = enum.auto()
    # In groups of 128, and weights as well.
    COARSE_INT8 = enum.auto()
    # To bf16; weights are exact.
    BF16_INPUTS = enum.auto()
    # And weights that are not bf16.
    BF16 = enum.auto()


def oracle(
    layer: RandomLayer,
    hidden: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    rounding: Rounding,
    *,
    down_rounding: Rounding | None = None,
    kind: _core.Activation = _core.Activation.SILU,
    alpha: float = 1.0,
    limit: float = 0.0,
) -> tuple[F64, F64]:
    """(out, bound) [tokens, H]: what the engine must give, and how far off rounding can take it.

    down_rounding: before the down projection, where that is another.
    """
    out = np.zeros(hidden.shape, np.float64)
    bound = np.zeros(hidden.shape, np.float64)
    spec = layer.spec
    down_rounding = down_rounding or rounding
    coarse = rounding == Rounding.COARSE_INT8

    def weight_error(rounding: Rounding, panel: _core.PanelFormat) -> float:
        return U_BF16 if rounding == Rounding.BF16 and panel.dtype != _core.Dtype.BF16 else 0.0

    terms = ids.shape[1] * (spec.intermediate_size + spec.num_units) + 8
    for t, (token_ids, token_weights) in enumerate(zip(ids, weights, strict=True)):
        magnitude = np.zeros(spec.hidden_size)
        for e, w in zip(token_ids, token_weights.astype(np.float64), strict=True):
            if e < 0:
                continue
            gate, up, down = layer.experts[e]
            # In the expert's order first: an int8 group is 32 of its columns.
            x = up.takes(hidden[t])
            if rounding in (Rounding.BF16, Rounding.BF16_INPUTS):
                x = round_bf16(x)
            elif rounding == Rounding.NONE:
                x = x.astype(np.float64)
            else:
                x = quantize_rows(x, 128 if coarse else 32)[0]
            # +8: dequantising a group, adding its sums, the bias. Integer sums are exact.
            g_up = gamma(spec.hidden_size + 8) + weight_error(rounding, spec.gate_up)
            pre_up = up.value @ x + up.bias
            err_up = g_up * (np.abs(up.value) @ np.abs(x) + np.abs(up.bias))
            pre_gate, err_gate = None, np.zeros_like(err_up)
            if gate is not None:
                pre_gate = gate.value @ x + gate.bias
                err_gate = g_up * (np.abs(gate.value) @ np.abs(x) + np.abs(gate.bias))
            if coarse:
                err_up += coarse_error(up, spec.gate_up.dtype, aligned=True) @ np.abs(x)
                err_gate += (
                    0 if gate is None else coarse_error(gate, spec.gate_up.dtype, aligned=True) @ np.abs(x)
                )
            act = activation(kind, pre_gate, pre_up, alpha, limit) * w
            # How far the pre-activations' errors move it, by finite differences of the oracle itself
            # (doubled for curvature), and 32 units for Exp (about 2 ulp), the division and the products. situ
            # has three of them, and its two tanh divide sums in which up to three quarters cancel.
            moved = np.zeros_like(act)
            for sign_g in (-1, 1):
                for sign_u in (-1, 1):
                    shifted = activation(
                        kind,
                        None if pre_gate is None else pre_gate + sign_g * err_gate,
                        pre_up + sign_u * err_up,
                        alpha,
                        limit,
                    )
                    moved = np.maximum(moved, np.abs(shifted * w - act))
            units = 96 if kind == _core.Activation.SITU else 32
            err_act = 2 * moved + units * U * np.abs(act) + 1e-30
            if down_rounding == Rounding.INT8:
                exact = act
                act, step = quantize_rows(act.astype(np.float32))
                # A rounding that the error can tip falls one step to either side; elsewhere only the step's
                # own error stays.
                position = np.divide(exact, step, out=np.zeros_like(exact), where=step > 0)
                to_tie = np.abs(np.abs(position - np.trunc(position)) - 0.5) * step
                largest_error = err_act.max() * 2
                err_act = np.where(to_tie <= largest_error + 4 * U * np.abs(exact), step, 0) + largest_error
            if down_rounding in (Rounding.BF16, Rounding.BF16_INPUTS):
                # The rounding of what the engine has, which is err_act off.
                err_act += U_BF16 * (np.abs(act) + err_act)
            err_act += weight_error(down_rounding, spec.down) * (np.abs(act) + err_act)
            if down_rounding == Rounding.COARSE_INT8:
                # Half a step of the largest group; which values share one depends on where units are.
                err_act += (np.abs(act).max() + err_act.max()) / 254
                bound[t] += coarse_error(down, spec.down.dtype, aligned=False) @ (np.abs(act) + err_act)
            out[t] += down.value @ act + w * down.bias
            bound[t] += np.abs(down.value) @ err_act
            magnitude += np.abs(down.value) @ np.abs(act) + np.abs(w * down.bias)
        bound[t] += gamma(terms) * magnitude
    return out, bound
