"""Codes that stay in their file until the core reads them: the same records, errors and no signals."""

import os
from contextlib import ExitStack

import numpy as np
import pytest

from checkpoints import make_checkpoint
from lsg import CheckpointError
from lsg._core import Dtype, LayerSpec, Matrix, PanelFormat, ScaleDtype, convert_expert, crc32c, map_range
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources import find_experts

HIDDEN, INTERMEDIATE = 224, 352
# Inside a page, and at no multiple of a cache line.
OFFSET = 4096 + 36
BF16 = PanelFormat(Dtype.BF16)
FP8 = PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32, scale_rows=32, scale_k=128)
INT4 = PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32)
NVFP4 = PanelFormat(Dtype.FP4_E2M1, ScaleDtype.FP8_E4M3, scale_k=16, global_scale=True)


def layer(target, hidden=HIDDEN, intermediate=INTERMEDIATE):
    return LayerSpec(
        layer_index=0,
        num_experts=2,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=True,
        gate_up=target,
        down=target,
    )


def matrix(source, rows, columns, seed):
    rng = np.random.default_rng(seed)
    if source is BF16:
        values = rng.standard_normal((rows, columns), np.float32)
        return Matrix((values.view(np.uint32) >> 16).astype(np.uint16))
    codes = rng.integers(0, 0x7F, (rows, columns), np.uint8)
    return Matrix(codes, rng.random((-(-rows // 32), -(-columns // 128)), np.float32) + 0.5)


def in_file(whole, path, stack):
    """The matrix, its codes only in a file."""
    codes = whole.codes
    path.write_bytes(bytes(OFFSET) + codes.tobytes() + b"behind it")
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    stored = map_range(fd, OFFSET, codes.nbytes, populate=False).view(codes.dtype).reshape(codes.shape)
    return Matrix(stored, whole.scales)


def repack(spec, source, matrices):
    records = np.full((spec.num_units, spec.record_bytes), 0xEE, np.uint8)
    return records, convert_expert(spec, 1, *matrices, source, source, records)


@pytest.mark.parametrize("target", [BF16, FP8, INT4, NVFP4])
@pytest.mark.parametrize("source", [BF16, FP8])
def test_the_same_records_as_from_memory(tmp_path, source, target):
    spec = layer(target)
    shapes = [(INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
    whole = [matrix(source, *shape, seed) for seed, shape in enumerate(shapes)]
    with ExitStack() as stack:
        stored = [in_file(one, tmp_path / str(number), stack) for number, one in enumerate(whole)]
        found, told = repack(spec, source, stored)
    expected, expected_told = repack(spec, source, whole)
    np.testing.assert_array_equal(found, expected)
    assert told == expected_told
    assert told[1] == crc32c(found.reshape(-1))


def test_a_projection_may_begin_inside_a_stored_matrix(tmp_path):
    fused = matrix(BF16, 2 * INTERMEDIATE, HIDDEN, 0)
    down = matrix(BF16, HIDDEN, INTERMEDIATE, 1)
    with ExitStack() as stack:
        codes = in_file(fused, tmp_path / "fused", stack).codes
        found, _ = repack(layer(BF16), BF16, [*map(Matrix, np.split(codes, 2)), down])
    expected, _ = repack(layer(BF16), BF16, [*map(Matrix, np.split(fused.codes, 2)), down])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("left", [0, OFFSET + 5000])
def test_a_file_that_shrinks_is_an_error(tmp_path, left):
    whole = matrix(BF16, INTERMEDIATE, HIDDEN, 0)
    with ExitStack() as stack:
        up = in_file(whole, tmp_path / "up", stack)
        os.truncate(tmp_path / "up", left)
        with pytest.raises(OSError, match="No data available"):
            repack(layer(BF16), BF16, [whole, up, matrix(BF16, HIDDEN, INTERMEDIATE, 1)])


@pytest.fixture
def large(tmp_path):
    """A checkpoint whose matrices are large enough to be mapped."""
    return make_checkpoint(tmp_path / "moe", layers=1, hidden=512, intermediate=320, experts=2, shards=1)


@pytest.mark.parametrize("experts", ["bf16", "int4"])
def test_a_checkpoints_large_matrices_stay_in_their_shards(
    tmp_path, large, convert, tree_hash, monkeypatch, experts
):
    calls = []

    def spy(*args, populate):
        calls.append(populate)
        return map_range(*args, populate=populate)

    monkeypatch.setattr("lsg.convert.checkpoint.map_range", spy)
    assert convert(large, tmp_path / "mapped", "--experts", experts).exit_code == 0
    assert calls == [False] * 6
    monkeypatch.setattr("lsg.convert.checkpoint.map_range", lambda *_, **__: None)
    assert convert(large, tmp_path / "copied", "--experts", experts).exit_code == 0
    assert tree_hash(tmp_path / "mapped") == tree_hash(tmp_path / "copied")


def test_a_shard_that_shrinks_before_the_core_reads_it(large, tmp_path):
    with Checkpoint(large) as checkpoint:
        source = find_experts(checkpoint, MoeGeometry.from_config(checkpoint.config, "config.json"))
        described = source.layers[0]
        expert = source.read(described, 1, in_file=True)
        shard = large / checkpoint.shards[0].name
        os.truncate(shard, shard.stat().st_size // 8)
        with pytest.raises(OSError, match="No data available"):
            repack(layer(BF16, 512, 320), BF16, expert)
        with pytest.raises(CheckpointError, match=r"ended inside .*; the file changed while it was read"):
            source.check(described, 1)
