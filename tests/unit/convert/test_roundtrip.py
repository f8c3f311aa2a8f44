"""Converted experts against the checkpoint, read by the core and by FORMAT.md's address arithmetic."""

import struct
from typing import NamedTuple

import google_crc32c
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints import make_checkpoint
from lsg import manifest
from lsg._core import LayerFile, unpack_expert

LAYERS, EXPERTS = 2, 4
# (H, I): padding in both panels' outputs; in their inputs too; units of 64, the last one half filled.
SHAPES = [(96, 80), (72, 48), (64, 1568)]


class Header(NamedTuple):
    """What the decoder below needs of a layer file's header."""

    experts: int
    hidden: int
    intermediate: int
    unit_rows: int
    num_units: int
    dtype: int
    scale_dtype: int
    scale_k: int
    record_bytes: int
    unit_bytes: int


def read_header(data):
    assert data[:8].tobytes() == b"LSGBLOB\0"
    experts, hidden, intermediate, unit_rows, num_units = struct.unpack_from("<5I", data, 36)
    gate_up, down = struct.unpack_from("<8I", data, 56), struct.unpack_from("<8I", data, 88)
    assert gate_up == down
    record_bytes, unit_bytes = struct.unpack_from("<2Q", data, 120)
    return Header(
        experts,
        hidden,
        intermediate,
        unit_rows,
        num_units,
        gate_up[0],
        gate_up[1],
        gate_up[3],
        record_bytes,
        unit_bytes,
    )


def ceil(a, b):
    return -(-a // b) * b


def code_bits(header):
    return {1: 4, 5: 16, 6: 16}[header.dtype]


def panel_codes(data, start, n, k, inputs, bits):
    """Codes at panel rows n and columns k (broadcast), of a panel with `inputs` padded columns."""
    tile = ((n // 64) * (inputs // 32) + k // 32) * 4 + (n % 64) // 16
    offset = start + tile * (16 * 32 * bits // 8)
    n, k = n % 16, k % 32
    if bits == 16:
        offset = offset + ((k // 2) * 16 + n) * 4 + (k % 2) * 2
        return data[offset].astype(np.uint16) | data[offset + 1].astype(np.uint16) << 8
    byte = data[offset + ((k // 8) * 16 + n) * 4 + k % 4]
    return np.where(k % 8 < 4, byte & 15, byte >> 4)


def panel_scales(data, start, n, group, groups):
    """Scales (bf16) at panel rows n and groups of columns."""
    offset = start + (((n // 64) * groups + group) * 64 + n % 64) * 2
    return data[offset].astype(np.uint32) << 16 | data[offset + 1].astype(np.uint32) << 24


def decode(path, expert):
    """gate, up [I, H] and down [H, I]: codes, and scales as float32 (None without)."""
    data = np.fromfile(path, np.uint8)
    h = read_header(data)
    bits, rows = code_bits(h), h.unit_rows
    gate_up_inputs, down_outputs = ceil(h.hidden, 32), ceil(h.hidden, 64)
    scale_bytes = 2 if bits == 4 else 0
    gate_up_codes = 0
    gate_up_scales = gate_up_codes + ceil(2 * rows * gate_up_inputs * bits // 8, 64)
    down_codes = gate_up_scales + ceil(2 * rows * (gate_up_inputs // 32) * scale_bytes, 64)
    down_scales = down_codes + ceil(down_outputs * rows * bits // 8, 64)
    assert h.record_bytes == down_scales + ceil(down_outputs * (rows // 32) * scale_bytes, 64)

    neuron, hidden = np.arange(h.intermediate), np.arange(h.hidden)
    record = 4096 + (neuron // rows) * h.unit_bytes + expert * h.record_bytes
    row = neuron % rows
    found = {}
    for name, half in (("gate", 0), ("up", 32)):
        n = (64 * (row // 32) + half + row % 32)[:, None]
        codes = panel_codes(data, record[:, None] + gate_up_codes, n, hidden[None], gate_up_inputs, bits)
        scales = None
        if bits == 4:
            start, groups = record[:, None] + gate_up_scales, gate_up_inputs // 32
            scales = panel_scales(data, start, n, hidden[None] // 32, groups).view(np.float32)
        found[name] = codes, scales
    codes = panel_codes(data, record[None] + down_codes, hidden[:, None], row[None], rows, bits)
    scales = None
    if bits == 4:
        start = record[None] + down_scales
        scales = panel_scales(data, start, hidden[:, None], row[None] // 32, rows // 32).view(np.float32)
    found["down"] = codes, scales
    return found


def load_weights(directory):
    return {name: t for path in directory.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"H{shape[0]}-I{shape[1]}")
def source(request, tmp_path_factory):
    hidden, intermediate = request.param
    return make_checkpoint(
        tmp_path_factory.mktemp("source") / "tiny",
        layers=LAYERS,
        hidden=hidden,
        intermediate=intermediate,
        experts=EXPERTS,
        shards=2,
    )


def experts_of(out, weights):
    """Every expert's projection: (layer entry, path, expert, name, the checkpoint's tensor)."""
    for layer in manifest.load(out).layers:
        for expert in range(EXPERTS):
            for name in ("gate", "up", "down"):
                tensor = weights[f"{layer.prefix}.{expert}.{name}_proj.weight"]
                yield layer, out / "experts" / layer.file, expert, name, tensor


@pytest.mark.parametrize(("experts", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_16_bit_experts_are_the_checkpoints(convert, source, tmp_path, experts, torch_dtype):
    assert convert(source, tmp_path / "out", "--experts", experts).exit_code == 0
    weights = load_weights(source)
    for _, path, expert, name, tensor in experts_of(tmp_path / "out", weights):
        expected = tensor.to(torch_dtype).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(decode(path, expert)[name][0], expected)
        file = LayerFile(str(path))
        unpacked = dict(
            zip(("gate", "up", "down"), unpack_expert(file.spec, file.expert(expert)), strict=True)
        )
        np.testing.assert_array_equal(unpacked[name].codes, expected)


@pytest.mark.parametrize("search", ["--search", "--no-search"])
def test_int4_experts_are_the_nearest_numbers(convert, source, tmp_path, search):
    assert convert(source, tmp_path / "out", "--experts", "int4", search).exit_code == 0
    weights = load_weights(source)
    sums = {}
    for layer, path, expert, name, tensor in experts_of(tmp_path / "out", weights):
        codes, scales = decode(path, expert)[name]
        weight = tensor.double().numpy()
        q = codes.astype(np.int64) - 8
        assert (q >= -8).all()
        assert (q <= 7).all()
        error = np.abs(q * scales.astype(np.float64) - weight)
        half_step = np.abs(scales) / 2
        # A scale may cut off a group's largest weights; those sit at an end of the range and lie beyond it.
        beyond = error > half_step
        assert ((q[beyond] == -8) | (q[beyond] == 7)).all()
        assert (np.abs(weight) > np.abs(q * scales))[beyond].all()
        assert beyond.mean() < 0.05
        total = sums.setdefault((layer.index, name), [0.0, 0.0])
        total[0] += np.square(error).sum()
        total[1] += np.square(weight).sum()

        file = LayerFile(str(path))
        unpacked = dict(
            zip(("gate", "up", "down"), unpack_expert(file.spec, file.expert(expert)), strict=True)
        )
        np.testing.assert_array_equal(unpacked[name].codes, codes)
        wide = np.repeat((unpacked[name].scales.astype(np.uint32) << 16).view(np.float32), 32, axis=1)
        np.testing.assert_array_equal(wide[:, : scales.shape[1]], np.broadcast_to(scales, codes.shape))
    for layer in manifest.load(tmp_path / "out").layers:
        for name in ("gate", "up", "down"):
            error, norm = sums[layer.index, name]
            # The core may sum a group's 32 terms in single precision.
            assert getattr(layer.error, name) == pytest.approx(error / norm, rel=32 * 2**-24)


def test_searched_scales_err_less(convert, source, tmp_path):
    errors = {}
    for search in ("--search", "--no-search"):
        assert convert(source, tmp_path / search, "--experts", "int4", search).exit_code == 0
        errors[search] = [layer.error for layer in manifest.load(tmp_path / search).layers]
    for searched, plain in zip(errors["--search"], errors["--no-search"], strict=True):
        assert searched.gate < plain.gate
        assert searched.up < plain.up
        assert searched.down < plain.down


@pytest.mark.parametrize("experts", ["int4", "bf16"])
def test_checksums_and_padding(convert, source, tmp_path, experts):
    assert convert(source, tmp_path / "out", "--experts", experts).exit_code == 0
    for layer in manifest.load(tmp_path / "out").layers:
        path = tmp_path / "out" / "experts" / layer.file
        data = np.fromfile(path, np.uint8)
        h = read_header(data)
        assert len(data) == layer.file_bytes
        assert layer.header_crc32c == struct.unpack_from("<I", data, 4092)[0]
        assert layer.header_crc32c == google_crc32c.value(data[:4092].tobytes())
        units = data[4096 : 4096 + h.num_units * h.unit_bytes].reshape(h.num_units, h.unit_bytes)
        for expert, checksum in enumerate(layer.slab_crc32c):
            slab = units[:, expert * h.record_bytes : (expert + 1) * h.record_bytes]
            assert checksum == google_crc32c.value(slab.tobytes())
        assert not units[:, EXPERTS * h.record_bytes :].any()
        assert layer.table_crc32c == google_crc32c.value(data[4096 + h.num_units * h.unit_bytes :].tobytes())
        layer.check_spec(LayerFile(str(path)).spec, path)
