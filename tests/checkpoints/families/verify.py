"""Checks a converted family checkpoint against what its generator knows.

Values come from the blob by FORMAT.md's formula, (code - zero_point) · scale · global_scale, in float64.
Invariant: a check raises Mismatch with the first thing that is wrong, or has looked at every expert of every
layer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from layers import RandomLayer, RandomMatrix, Rounding, U, forward, oracle

from checkpoints.families.expected import Expected, ExpertKey
from checkpoints.families.files import read_all
from checkpoints.families.matrices import E2M1, F64, e4m3_value
from lsg import manifest
from lsg._core import (
    Activation,
    Dtype,
    Engine,
    LayerFile,
    Matrix,
    PanelFormat,
    ScaleDtype,
    unpack_expert,
)

PROJECTIONS: Final = ("gate", "up", "down")
INT4_GROUP: Final = 32
_TOKENS: Final = 12


class Mismatch(AssertionError):
    """The converted directory is not what it must be."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Mismatch(what)


def blob_value(matrix: Matrix, panel: PanelFormat) -> F64:
    """The weights [N, K] of an unpacked matrix."""
    rows, cols = matrix.codes.shape
    value = _code_values(matrix, panel)

    def spread(entries: F64) -> F64:
        wide = entries.repeat(panel.scale_rows, axis=0)[:rows]
        return wide.repeat(panel.scale_k or cols, axis=1)[:, :cols]

    if matrix.zero_points is not None:
        value = value - spread(matrix.zero_points.astype(np.float64))
    elif panel.dtype == Dtype.INT4:
        value = value - 8
    if matrix.scales is not None:
        value = value * spread(_scale_values(matrix, panel.scale_dtype))
    return value if matrix.global_scale is None else value * matrix.global_scale


def _code_values(matrix: Matrix, panel: PanelFormat) -> F64:
    codes = matrix.codes
    match panel.dtype:
        case Dtype.INT4:
            return codes.astype(np.float64)
        case Dtype.INT8:
            return (codes.view(np.int8) if matrix.zero_points is None else codes).astype(np.float64)
        case Dtype.FP8_E4M3:
            return e4m3_value(codes)
        case Dtype.FP4_E2M1:
            return E2M1[codes]
        case Dtype.BF16:
            return _bf16(codes)
        case Dtype.F16:
            return codes.view(np.float16).astype(np.float64)
    msg = f"no family stores {panel.dtype}"
    raise Mismatch(msg)


def _scale_values(matrix: Matrix, dtype: ScaleDtype) -> F64:
    scales = matrix.scales
    match dtype:
        case ScaleDtype.F32:
            return scales.view(np.float32).astype(np.float64)
        case ScaleDtype.F16:
            return scales.view(np.float16).astype(np.float64)
        case ScaleDtype.BF16:
            return _bf16(scales)
        case ScaleDtype.FP8_E4M3:
            return e4m3_value(scales)
    return 2.0 ** (scales.astype(np.float64) - 127)


def _bf16(bits: np.ndarray) -> F64:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class Found(NamedTuple):
    """A projection of an expert in a blob, its value, and what that must be."""

    key: ExpertKey
    matrix: Matrix
    panel: PanelFormat
    value: F64
    want: F64


def _experts(out: Path, expected: Expected) -> Iterator[Found]:
    """Every projection of every expert that the blobs hold."""
    for layer in manifest.load(out).layers:
        file = LayerFile(str(out / manifest.DIRECTORY / layer.file))
        layer.check_spec(file.spec, out)
        table = file.table()
        for expert in range(layer.num_experts):
            found = unpack_expert(file.spec, file.expert(expert), table, expert)
            want: dict[str, F64] = {}
            for name in PROJECTIONS[not expected.gated :]:
                key = (layer.prefix, expert, name)
                _require(key in expected.weights, f"{key} is in no checkpoint")
                want[name] = expected.weights[key]
            if expected.reorders:
                _reorder(want, blob_value(found[1], file.spec.gate_up), found[1].input_order)
            for name, matrix in zip(PROJECTIONS, found, strict=True):
                if matrix is not None:
                    panel = file.spec.down if name == "down" else file.spec.gate_up
                    key = (layer.prefix, expert, name)
                    yield Found(key, matrix, panel, blob_value(matrix, panel), want[name])


def _reorder(want: dict[str, F64], up: F64, order: npt.NDArray[np.uint32] | None) -> None:
    """An expert's weights in the blob's order: inputs as it says, neurons by the likeness of up's rows."""
    _require(order is not None, "the blob has no input order")
    for name in want.keys() - {"down"}:
        want[name] = want[name][:, order]
    cosine = (up / np.linalg.norm(up, axis=1)[:, None]) @ want["up"].T / np.linalg.norm(want["up"], axis=1)
    neurons = np.argmax(cosine, axis=1)
    _require(len(set(neurons)) == len(up), "two rows of up are one of the checkpoint's")
    _require(bool((neurons != np.arange(len(up))).any()), "down's groups are runs, which they were not")
    for name in want.keys() - {"down"}:
        want[name] = want[name][neurons]
    want["down"] = want["down"][:, neurons]


def check_experts(out: Path, expected: Expected, target: str = "keep") -> None:
    """Exact (keep), rounded once (bf16) or within the error of plain int4 rounding; biases exact."""
    seen = set()
    for key, matrix, panel, got, want in _experts(out, expected):
        seen.add(key)
        error = np.abs(got - want)
        bound = expected.rtol * np.abs(want)
        if target == "bf16":
            _require(panel.dtype == Dtype.BF16, f"{key} is {panel.dtype}")
            # Half a unit in the last of 8 digits; frexp's fraction is at least a half.
            bound = bound + np.ldexp(1.0, np.frexp(want)[1] - 9)
        elif target == "int4":
            _require(panel.dtype == Dtype.INT4, f"{key} is {panel.dtype}")
            error, bound = _int4_errors(error, want)
        row, column = (int(i) for i in np.unravel_index(np.argmax(error - bound), error.shape))
        _require(
            bool((error <= bound).all()),
            f"{key}: row {row}, {'group' if target == 'int4' else 'column'} {column} is off by "
            f"{error[row, column]:.3g}, allowed are {bound[row, column]:.3g}",
        )
        bias = matrix.bias
        if key in expected.biases:
            _require(bias is not None and bool((bias == expected.biases[key]).all()), f"{key}: another bias")
        else:
            _require(bias is None, f"{key} has no bias")
    missing = expected.weights.keys() - seen
    _require(not missing, f"not in any blob: {min(missing, default='')}")


def _int4_errors(error: F64, want: F64) -> tuple[F64, F64]:
    """Norm of each group's error, and its bound: half a step of absmax / 7 for each of its weights.

    A search may cut off a group's largest weight, but only where that lowers the sum. 2⁻⁷ and 2⁻⁹: scales are
    rounded to bf16, which widens the step and moves the largest weight away from its code.
    """
    padding = ((0, 0), (0, -want.shape[1] % INT4_GROUP))

    def grouped(values: F64) -> F64:
        return np.pad(values, padding).reshape(len(values), -1, INT4_GROUP)

    largest = np.abs(grouped(want)).max(axis=2)
    bound = largest * ((1 + 2.0**-7) / 14 + 2.0**-9) * INT4_GROUP**0.5
    return np.sqrt(np.square(grouped(error)).sum(axis=2)), bound


def check_manifest(out: Path, expected: Expected) -> None:
    """Layers, geometry and activation."""
    catalogue = manifest.load(out)
    found = {layer.prefix: layer.index for layer in catalogue.layers}
    _require(found == dict(expected.indices), f"layers {found}, expected {dict(expected.indices)}")
    for layer in catalogue.layers:
        shape = (layer.num_experts, layer.hidden_size, layer.intermediate_size, layer.gated)
        want = (expected.num_experts, expected.hidden, expected.intermediate, expected.gated)
        _require(shape == want, f"{layer.prefix}: E, H, I, gated are {shape}, expected {want}")
        got, want_act = layer.activation, expected.activations[layer.prefix]
        _require(
            (got.kind, got.alpha, got.limit) == (want_act.kind, want_act.alpha, want_act.limit),
            f"{layer.prefix}: activation {got}, expected {want_act}",
        )
    _require(catalogue.top_k == expected.top_k, f"top_k {catalogue.top_k}, expected {expected.top_k}")


def check_resident(source: Path, out: Path, expected: Expected) -> None:
    """Every tensor that is no routed expert, byte by byte, and not one that is."""
    before, after = read_all(source), read_all(out)
    _require(
        after.keys() == expected.resident,
        f"resident tensors: missing {sorted(expected.resident - after.keys())[:3]}, "
        f"too many {sorted(after.keys() - expected.resident)[:3]}",
    )
    for name, stored in after.items():
        _require(stored == before[name], f"{name} has changed")


def check_engine(out: Path, expected: Expected) -> None:
    """The engine's answer for a small batch against the experts' formula in float64, every layer."""
    catalogue = manifest.load(out)
    engine = Engine(threads=2, activations="float")
    rng = np.random.default_rng(0)
    for layer in catalogue.layers:
        spec_of = layer.activation
        parameters = {"alpha": spec_of.alpha, "limit": spec_of.limit}
        kind = Activation[spec_of.kind.upper()]
        path = out / manifest.DIRECTORY / layer.file
        truth = RandomLayer(LayerFile(str(path)).spec, _truth(expected, layer.prefix), path)
        hidden = rng.normal(size=(_TOKENS, expected.hidden))
        if spec_of.limit:
            # A clamp that there is cuts off what lies beyond two deviations: some of it, but not most.
            hidden *= spec_of.limit / (2 * np.std(truth.experts[0][1].value @ hidden.T))
        hidden = hidden.astype(np.float32)
        ids = np.stack([rng.permutation(expected.num_experts)[: expected.top_k] for _ in range(_TOKENS)])
        weights = rng.uniform(0.1, 1, size=ids.shape).astype(np.float32)
        ids = ids.astype(np.int32)
        handle = engine.add_layer(str(path), activation=kind, **parameters)
        got = forward(engine, handle, hidden, ids, weights)
        want, bound = oracle(truth, hidden, ids, weights, Rounding.NONE, kind=kind, **parameters)
        # A reader's rounding of a matrix is one more beside the 96 or more that the bound allows each sum.
        bound = bound * (1 + 3 * expected.rtol / (96 * U))
        excess = float((np.abs(got - want) / np.maximum(bound, 1e-30)).max())
        _require(bool(np.isfinite(got).all()), f"{layer.prefix}: the engine's output is not finite")
        _require(excess <= 1, f"{layer.prefix}: the engine's error is {excess:.3g} of its bound")
        if spec_of.limit:
            largest = max(float(np.abs(up.value @ hidden[0] + up.bias).max()) for _, up, _ in truth.experts)
            _require(largest > spec_of.limit, f"{layer.prefix}: the batch never reaches the clamp")


def _truth(expected: Expected, prefix: str) -> list[tuple[RandomMatrix | None, RandomMatrix, RandomMatrix]]:
    def matrix(expert: int, name: str) -> RandomMatrix | None:
        key = (prefix, expert, name)
        if name == "gate" and not expected.gated:
            return None
        _require(key in expected.weights, f"{key} is in no checkpoint")
        value = expected.weights[key]
        return RandomMatrix(None, value, expected.biases.get(key, np.zeros(len(value))))

    return [tuple(matrix(e, name) for name in PROJECTIONS) for e in range(expected.num_experts)]
