"""The checks notice what they are there for: each damage below is the smallest of its kind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from checkpoints.families import Expected, make, verify
from checkpoints.families.family import Activation

MODEL, FORMAT = "gpt-oss-120b", "mxfp4-gpt-oss"
KEY = ("model.layers.1.mlp.experts", 3, "up")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Expected:
    return make(tmp_path_factory.mktemp("verify") / "source", MODEL, FORMAT)


@pytest.fixture(scope="module")
def out(expected: Expected, convert: Callable[..., Result], tmp_path_factory) -> Path:
    source = next(tmp_path_factory.getbasetemp().glob("verify*")) / "source"
    assert convert(source, source.with_name("out"), "--experts", "keep").exit_code == 0
    return source.with_name("out")


def changed(expected: Expected, field: str, key, value: np.ndarray) -> Expected:
    return replace(expected, **{field: dict(getattr(expected, field)) | {key: value}})


def test_one_weight_off_by_one_unit(out: Path, expected: Expected):
    value = expected.weights[KEY].copy()
    value[-1, -1] = np.nextafter(value[-1, -1], 1)
    with pytest.raises(verify.Mismatch, match="287"):
        verify.check_experts(out, changed(expected, "weights", KEY, value))


def test_one_bias(out: Path, expected: Expected):
    value = expected.biases[KEY].copy()
    value[-1] += 2.0**-10
    with pytest.raises(verify.Mismatch, match="another bias"):
        verify.check_experts(out, changed(expected, "biases", KEY, value))


def test_an_expert_that_no_blob_has(out: Path, expected: Expected):
    key = ("model.layers.2.mlp.experts", 0, "up")
    with pytest.raises(verify.Mismatch, match="not in any blob"):
        verify.check_experts(out, changed(expected, "weights", key, np.zeros((1, 1))))


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_a_row_of_weights_in_the_engine(out: Path, expected: Expected, projection: str):
    key = (*KEY[:2], projection)
    value = expected.weights[key].copy()
    value[5] *= 1.25
    verify.check_engine(out, expected)
    with pytest.raises(verify.Mismatch, match="of its bound"):
        verify.check_engine(out, changed(expected, "weights", key, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (
            "activations",
            {
                "model.layers.0.mlp.experts": Activation("swigluoai", 1.702, 7.0),
                "model.layers.1.mlp.experts": Activation("swigluoai", 1.702, 8.0),
            },
        ),
        ("top_k", 3),
        ("hidden", 256),
        ("indices", {"model.layers.0.mlp.experts": 0}),
    ],
)
def test_manifest(out: Path, expected: Expected, field: str, value: object):
    verify.check_manifest(out, expected)
    with pytest.raises(verify.Mismatch):
        verify.check_manifest(out, replace(expected, **{field: value}))


def test_a_changed_byte_and_a_missing_tensor(out: Path, expected: Expected, tmp_path: Path):
    source = out.with_name("source")
    damaged = Path(shutil.copytree(out, tmp_path / "damaged"))
    shard = next(damaged.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(verify.Mismatch, match="has changed"):
        verify.check_resident(source, damaged, expected)
    lost = min(expected.resident)
    with pytest.raises(verify.Mismatch, match="too many"):
        verify.check_resident(source, out, replace(expected, resident=expected.resident - {lost}))
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == expected.resident


@pytest.mark.parametrize(("target", "scale"), [("bf16", 1 + 2.0**-6), ("int4", 1.5)])
def test_rounded_experts_of_another_size(
    convert: Callable[..., Result], tmp_path: Path, target: str, scale: float
):
    expected = make(tmp_path / "source", "Qwen3-Coder-Next", "fp8-block")
    assert convert(tmp_path / "source", tmp_path / "out", "--experts", target).exit_code == 0
    key = min(expected.weights)
    verify.check_experts(tmp_path / "out", expected, target)
    with pytest.raises(verify.Mismatch, match="is off by"):
        verify.check_experts(
            tmp_path / "out", changed(expected, "weights", key, expected.weights[key] * scale), target
        )
