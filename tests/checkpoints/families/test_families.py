"""The generated checkpoints say what their generator claims, read by other people's code."""

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints.families import CASES, MODELS, Expected, make
from checkpoints.families.decoders import decode, decode_gpt_oss
from checkpoints.families.files import Stored, read_all
from checkpoints.families.formats import FORMATS
from checkpoints.families.layouts import PER_EXPERT, PER_PROJECTION
from checkpoints.families.matrices import Half


def ids(case: tuple[str, str]) -> str:
    return f"{case[0]}-{case[1]}".replace("/", "_").replace(" ", "_")


def module_of(stored: dict[str, Stored], path: str) -> dict:
    """The tensors below a module path, by the rest of their names."""
    return {
        name.removeprefix(path + "."): entry.tensor()
        for name, entry in stored.items()
        if name.startswith(path + ".")
    }


def fused_value(stored: dict[str, Stored], prefix: str, expert: int, projection: str, layout) -> np.ndarray:
    """gate_up_proj and down_proj of all experts: slices of the published shapes."""
    name = "down_proj" if projection == "down" else "gate_up_proj"
    weight = stored[f"{prefix}.{name}"].tensor()[expert].double()
    if f"{prefix}.{name}_scale_inv" in stored:
        scale = stored[f"{prefix}.{name}_scale_inv"].tensor()[expert].double()
        weight *= scale if scale.numel() == 1 else scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    if layout.transposed:
        weight = weight.T
    if projection == "down":
        return weight.numpy()
    half = len(weight) // 2
    if layout.interleaved:
        return weight[0::2].numpy() if projection == "gate" else weight[1::2].numpy()
    return weight[:half].numpy() if projection == "gate" else weight[half:].numpy()


def read_back(stored: dict[str, Stored], expected: Expected, model: str, form: str, key) -> np.ndarray:
    prefix, expert, projection = key
    family, layout = MODELS[model], MODELS[model].formats[form]
    plain = FORMATS[form].mixed and prefix == family.experts_path.format(n=family.moe_layers[-1])
    encoding = Half() if plain else FORMATS[form].experts
    if layout == PER_EXPERT:
        return decode(encoding, module_of(stored, f"{prefix}.{expert}.{family.modules[projection]}"))
    if layout == PER_PROJECTION:
        stacked = module_of(stored, f"{prefix}.{family.modules[projection]}")
        return decode(encoding, {suffix: tensor[expert] for suffix, tensor in stacked.items()})
    if encoding.decoder == "mxfp4":
        name = "down_proj" if projection == "down" else "gate_up_proj"
        whole = decode_gpt_oss(
            stored[f"{prefix}.{name}_blocks"].tensor(), stored[f"{prefix}.{name}_scales"].tensor()
        )[expert]
        return whole if projection == "down" else whole[("gate", "up").index(projection) :: 2]
    return fused_value(stored, prefix, expert, projection, layout)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_tensors_mean_what_was_drawn(tmp_path: Path, case: tuple[str, str]) -> None:
    model, form = case
    expected = make(tmp_path, model, form)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({weight_map[name] for name in expected.routed}) >= 2
    stored = read_all(tmp_path)
    assert stored.keys() == expected.resident | expected.routed
    assert not expected.resident & expected.routed
    for key, value in expected.weights.items():
        rows, cols = expected.intermediate, expected.hidden
        assert value.shape == ((cols, rows) if key[2] == "down" else (rows, cols))
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(read_back(stored, expected, model, form, key), value, err_msg=str(key))
    for (prefix, expert, projection), bias in expected.biases.items():
        name = "down_proj" if projection == "down" else "gate_up_proj"
        whole = stored[f"{prefix}.{name}_bias"].tensor()[expert].double().numpy()
        part = whole if projection == "down" else whole[("gate", "up").index(projection) :: 2]
        np.testing.assert_array_equal(part, bias)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / directory, "GLM-4.7", "int4-g32-mixed", seed)
    first, second, other = (read_all(tmp_path / directory) for directory in "abc")
    assert first == second
    assert first != other


def test_every_format_is_published_by_a_family() -> None:
    assert {form for _, form in CASES} == set(FORMATS)
