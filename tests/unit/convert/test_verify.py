"""`lsg verify` accepts what lsg-convert made and names the first byte's place that is something else."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints import families
from lsg import manifest
from lsg._core import LayerFile, crc32c
from lsg.cli import main
from lsg.convert.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def converted(convert, pristine, tmp_path_factory):
    """A directory for each way to store the experts. Do not change them."""
    root = tmp_path_factory.mktemp("converted")
    for experts in ("int4", "bf16", "fp16"):
        assert convert(pristine, root / experts, "--experts", experts).exit_code == 0
    return root


@pytest.fixture
def copy(converted, tmp_path):
    def copied(experts):
        return shutil.copytree(converted / experts, tmp_path / experts)

    return copied


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def refused(result, *parts):
    assert result.exit_code == 1, result.output
    failure = [line for line in result.stderr.splitlines() if line.startswith("lsg verify: ")]
    assert len(failure) == 1
    for part in parts:
        assert part in failure[0]


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def forge(model, index):
    """Make the manifest agree with a layer file that was changed."""
    path = manifest.path_in(model)
    content = json.loads(path.read_text())
    layer = next(layer for layer in content["layers"] if layer["index"] == index)
    file = LayerFile(str(model / "experts" / layer["file"]))
    layer["slab_crc32c"] = [file.slab_crc32c(expert) for expert in range(layer["num_experts"])]
    layer["table_crc32c"] = file.table_crc32c()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("experts", ["int4", "bf16", "fp16"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_what_was_converted_is_right(converted, pristine, experts, threads):
    result = verify(converted / experts, "--against", pristine, "--threads", threads)
    assert result.exit_code == 0, result.stderr
    assert "8 experts in 2 layers" in result.stdout
    assert f"every weight agrees with {pristine}" in result.stdout


def test_json(converted):
    result = verify(converted / "int4", "--json")
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["layers"], summary["slabs"], summary["compared"]) == (2, 8, False)


def test_every_byte_of_a_layer_file_counts_but_padding_between_units(copy):
    model = copy("int4")
    path = model / "experts" / "layer-00001.lsgb"
    spec = LayerFile(str(path)).spec
    pristine_bytes = path.read_bytes()
    for expert in range(spec.num_experts):
        for unit in range(spec.num_units):
            for offset in (0, spec.record_bytes // 2, spec.record_bytes - 1):
                flip(path, spec.record_offset(unit, expert) + offset)
                refused(verify(model), "layer-00001.lsgb", f"expert {expert} of layer 1 has checksum")
                path.write_bytes(pristine_bytes)
    for offset in (0, 44, 56, 4095):
        flip(path, offset)
        refused(verify(model), "layer-00001.lsgb")
        path.write_bytes(pristine_bytes)


def test_a_layer_file_that_is_missing_short_or_another_layers(copy):
    model = copy("int4")
    path = model / "experts" / "layer-00001.lsgb"
    other = (model / "experts" / "layer-00000.lsgb").read_bytes()
    path.write_bytes(other)
    refused(verify(model), "layer-00001.lsgb", "index")
    path.write_bytes(other[:-4096])
    refused(verify(model), "layer-00001.lsgb")
    path.unlink()
    refused(verify(model), "layer-00001.lsgb: missing")


@pytest.mark.parametrize(("at", "projection"), [(0, "gate"), (-1, "down")])
def test_against_the_checkpoint_a_lossless_weight_must_be_the_same(copy, pristine, at, projection):
    model = copy("bf16")
    path = model / "experts" / "layer-00001.lsgb"
    spec = LayerFile(str(path)).spec
    data = np.frombuffer(path.read_bytes(), np.uint8)
    begin = spec.record_offset(1, 2)
    used = np.flatnonzero(data[begin : begin + spec.record_bytes])
    flip(path, begin + int(used[at]))
    forge(model, 1)
    assert verify(model).exit_code == 0
    refused(
        verify(model, "--against", pristine),
        "layer 1, expert 2, unit 1: weight [",
        f"of model.layers.1.mlp.experts.2.{projection}_proj differs from the checkpoint",
    )


def test_against_the_checkpoint_a_narrowed_layer_must_have_the_error_that_was_promised(copy, pristine):
    model = copy("int4")
    path = model / "experts" / "layer-00001.lsgb"
    spec = LayerFile(str(path)).spec
    # Codes of the largest weights of some rows: one step more is a larger error.
    data = bytearray(path.read_bytes())
    begin = spec.record_offset(0, 3)
    data[begin : begin + 64] = bytes(byte ^ 0x44 for byte in data[begin : begin + 64])
    path.write_bytes(data)
    forge(model, 1)
    refused(verify(model, "--against", pristine), "layer 1: gate_proj has a relative squared error of")


def test_another_checkpoint(converted, source):
    with Checkpoint(source) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.experts.1.up_proj.weight"]
    flip(source / tensor.shard, tensor.offset)
    refused(verify(converted / "bf16", "--against", source), "layer 0, expert 1, unit 0: weight [0, 0]")


def test_crc_of_the_table(copy):
    model = copy("int4")
    path = manifest.path_in(model)
    content = json.loads(path.read_text())
    content["layers"][0]["table_crc32c"] = crc32c(b"another")
    path.write_text(json.dumps(content))
    refused(verify(model), "the expert table of layer 0 is damaged")


def test_orders_of_inputs(convert, tmp_path):
    source, model = tmp_path / "source", tmp_path / "model"
    families.make(source, "Qwen3-Coder-30B-A3B", "gptq-desc-act")
    assert convert(source, model, "--experts", "keep").exit_code == 0
    assert verify(model, "--against", source).exit_code == 0
    path = model / "experts" / "layer-00001.lsgb"
    spec = LayerFile(str(path)).spec
    data = bytearray(path.read_bytes())
    # The orders are all that this table holds; exchange two inputs of expert 2.
    at = spec.table_offset + 2 * spec.hidden_size * 4
    data[at : at + 8] = data[at + 4 : at + 8] + data[at : at + 4]
    path.write_bytes(data)
    forge(model, 1)
    assert verify(model).exit_code == 0
    wanted = "layer 1, expert 2: gate_proj has another input order than the checkpoint"
    refused(verify(model, "--against", source), wanted)


def test_another_activation(copy, pristine):
    model = copy("bf16")
    path = manifest.path_in(model)
    content = json.loads(path.read_text())
    content["layers"][1]["activation"] = {"kind": "silu_clamped", "alpha": 1.0, "limit": 7.0}
    path.write_text(json.dumps(content))
    wanted = "layer 1: the checkpoint's experts compute silu, the manifest says silu_clamped limit 7.0"
    refused(verify(model, "--against", pristine), wanted)
