"""Layer files: round trips, the reader's refusals, and a blob written down by hand from FORMAT.md."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsg import FormatError, _core

DTYPES = list(_core.Dtype)
SCALES = [dtype for dtype in _core.ScaleDtype if dtype != _core.ScaleDtype.NONE]
SCALE_NUMPY = {
    _core.ScaleDtype.F32: np.float32,
    _core.ScaleDtype.F16: np.uint16,
    _core.ScaleDtype.BF16: np.uint16,
    _core.ScaleDtype.FP8_E4M3: np.uint8,
    _core.ScaleDtype.E8M0: np.uint8,
}
INT4 = _core.PanelFormat(_core.Dtype.INT4, _core.ScaleDtype.BF16, scale_k=32)


def spec_of(
    fmt: _core.PanelFormat = INT4, down: _core.PanelFormat | None = None, **overrides
) -> _core.LayerSpec:
    fields = {"layer_index": 3, "num_experts": 2, "hidden_size": 96, "intermediate_size": 80, "gated": True}
    return _core.LayerSpec(**(fields | overrides), gate_up=fmt, down=down or fmt)


@st.composite
def formats(draw, down: bool = False) -> _core.PanelFormat:
    dtype = draw(st.sampled_from(DTYPES))
    k_permutation = not down and draw(st.booleans())
    if draw(st.booleans()):
        return _core.PanelFormat(
            dtype, bias=draw(st.booleans()), global_scale=draw(st.booleans()), k_permutation=k_permutation
        )
    return _core.PanelFormat(
        dtype,
        draw(st.sampled_from(SCALES)),
        scale_rows=draw(st.sampled_from([1, 32])),
        scale_k=draw(st.sampled_from([0, 16, 32, 64, 128])),
        zero_point=draw(st.booleans()),
        bias=draw(st.booleans()),
        global_scale=draw(st.booleans()),
        k_permutation=k_permutation,
    )


def random_matrix(
    rng: np.random.Generator, fmt: _core.PanelFormat, rows: int, cols: int, order: np.ndarray | None = None
) -> _core.Matrix:
    if fmt.dtype in (_core.Dtype.BF16, _core.Dtype.F16):
        codes = rng.integers(0, 1 << 16, (rows, cols), np.uint16)
    else:
        bits = 4 if fmt.dtype in (_core.Dtype.INT4, _core.Dtype.FP4_E2M1) else 8
        codes = rng.integers(0, 1 << bits, (rows, cols), np.uint8)
    scales = zeros = bias = None
    if fmt.scale_dtype != _core.ScaleDtype.NONE:
        shape = (-(-rows // fmt.scale_rows), 1 if fmt.scale_k == 0 else -(-cols // fmt.scale_k))
        kind = SCALE_NUMPY[fmt.scale_dtype]
        scales = (
            rng.random(shape, np.float32)
            if kind is np.float32
            else rng.integers(0, np.iinfo(kind).max, shape, kind)
        )
        if fmt.zero_point:
            zeros = rng.integers(0, 256, shape, np.uint8)
    if fmt.bias:
        bias = rng.random(rows, np.float32)
    global_scale = np.float32(rng.random()) if fmt.global_scale else None
    return _core.Matrix(codes, scales, zeros, bias, global_scale, order if fmt.k_permutation else None)


def assert_same(a: _core.Matrix, b: _core.Matrix) -> None:
    for name in ("codes", "scales", "zero_points", "bias", "input_order"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(x, y)
    assert a.global_scale == b.global_scale


@settings(deadline=None, max_examples=150)
@given(
    gate_up=formats(),
    down=formats(down=True),
    hidden=st.integers(1, 140),
    intermediate=st.integers(1, 200),
    gated=st.booleans(),
    unit_rows=st.sampled_from([0, 64, 128]),
    seed=st.integers(0, 1000),
)
def test_unpack_undoes_pack(gate_up, down, hidden, intermediate, gated, unit_rows, seed):
    spec = spec_of(
        gate_up, down, hidden_size=hidden, intermediate_size=intermediate, gated=gated, unit_rows=unit_rows
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(hidden).astype(np.uint32)
    gate = random_matrix(rng, gate_up, intermediate, hidden, order) if gated else None
    up = random_matrix(rng, gate_up, intermediate, hidden, order)
    matrix = random_matrix(rng, down, hidden, intermediate)
    records = _core.pack_expert(spec, gate, up, matrix)
    assert records.shape == (spec.num_units, spec.record_bytes)
    table = np.zeros(spec.table_bytes, np.uint8)
    for offset, data in _core.pack_table(spec, 1, gate, up, matrix):
        at = offset - spec.table_offset
        assert at + len(data) <= spec.table_bytes
        assert not table[at : at + len(data)].any()
        table[at : at + len(data)] = np.frombuffer(data, np.uint8)
    back_gate, back_up, back_down = _core.unpack_expert(spec, records, table, 1)
    if gate is not None and back_gate is not None:
        assert_same(gate, back_gate)
    assert (gate is None) == (back_gate is None)
    assert_same(up, back_up)
    assert_same(matrix, back_down)


@settings(deadline=None, max_examples=150)
@given(
    gate_up=formats(),
    down=formats(down=True),
    hidden=st.integers(1, 8192),
    intermediate=st.integers(1, 8192),
    experts=st.integers(1, 1024),
    gated=st.booleans(),
)
def test_sizes_leave_no_hole_and_no_overlap(gate_up, down, hidden, intermediate, experts, gated):
    spec = spec_of(
        gate_up, down, hidden_size=hidden, intermediate_size=intermediate, num_experts=experts, gated=gated
    )
    assert spec.record_bytes % 64 == 0
    assert spec.unit_bytes % 4096 == 0
    assert 0 <= spec.unit_bytes - experts * spec.record_bytes < 4096
    assert spec.record_offset(0, 0) == 4096
    assert spec.table_offset == 4096 + spec.num_units * spec.unit_bytes
    assert spec.file_bytes == spec.table_offset + spec.table_bytes
    assert spec.num_units * spec.unit_rows >= intermediate > (spec.num_units - 1) * spec.unit_rows


@pytest.mark.parametrize(
    ("hidden", "intermediate", "gated", "unit_rows"),
    [
        (4096, 1536, True, 32),
        (7168, 2048, True, 64),  # not more than 48 units
        (2048, 768, True, 64),  # short records
        (2048, 512, True, 64),
        (2048, 256, True, 32),  # short, but eight units are to remain
        (2048, 1408, True, 32),  # 44 units would become 22: no multiple of four
        (1024, 1024, True, 128),
        (1024, 2048, False, 128),
    ],
)
def test_units_are_as_long_as_streaming_and_sharing_want(hidden, intermediate, gated, unit_rows):
    spec = spec_of(hidden_size=hidden, intermediate_size=intermediate, gated=gated)
    assert spec.unit_rows == unit_rows


def test_a_file_by_hand(tmp_path: Path):
    """One bf16 expert, H = 3, I = 2, laid out with nothing but FORMAT.md's text."""
    gate = np.array([[1, 2, 3], [4, 5, 6]], np.uint16)
    up = gate + 100
    down = np.array([[201, 202], [203, 204], [205, 206]], np.uint16)
    bf16 = [5, 0, 1, 0, 0, 0, 0, 0]
    codes = 64 * 32 * 2  # one block of 64 outputs, one tile of 32 inputs
    header = bytearray(4096)
    header[:8] = b"LSGBLOB\0"
    struct.pack_into("<12I", header, 8, 1, 0x01020304, 4096, 1, 1, 1, 3, 1, 3, 2, 32, 1)
    struct.pack_into("<16I", header, 56, *bf16, *bf16)
    struct.pack_into("<5Q", header, 120, 2 * codes, 8192, 4096 + 8192, 0, 4096 + 8192)
    struct.pack_into("<I", header, 4092, google_crc32c.value(bytes(header[:4092])))
    unit = bytearray(8192)
    for n in range(2):
        for k in range(3):
            at = ((k // 2) * 16 + n) * 4 + (k % 2) * 2
            struct.pack_into("<H", unit, at, gate[n, k])  # block rows 0-31: gate
            struct.pack_into("<H", unit, 2 * 1024 + at, up[n, k])  # rows 32-63, so from tile 2: up
    for n in range(3):
        for k in range(2):
            struct.pack_into("<H", unit, codes + ((k // 2) * 16 + n) * 4 + (k % 2) * 2, down[n, k])
    path = tmp_path / "layer-00003.lsgb"
    path.write_bytes(header + unit)

    file = _core.LayerFile(str(path))
    spec = spec_of(_core.PanelFormat(_core.Dtype.BF16), num_experts=1, hidden_size=3, intermediate_size=2)
    assert spec.header() == bytes(header)
    assert file.spec.header() == bytes(header)
    assert file.slab_crc32c(0) == google_crc32c.value(bytes(unit))
    got = _core.unpack_expert(file.spec, file.expert(0))
    for matrix, want in zip(got, (gate, up, down), strict=True):
        np.testing.assert_array_equal(matrix.codes, want)
    packed = _core.pack_expert(spec, _core.Matrix(gate), _core.Matrix(up), _core.Matrix(down))
    assert packed.tobytes() == bytes(unit)


def write_file(path: Path, spec: _core.LayerSpec) -> bytes:
    data = spec.header().ljust(spec.file_bytes, b"\0")
    path.write_bytes(data)
    return data


def test_every_damaged_header_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "x.lsgb"
    data = write_file(path, spec_of())
    _core.LayerFile(str(path))
    for at in [*range(170), 2000, *range(4090, 4096)]:
        broken = bytearray(data)
        broken[at] ^= 0x41
        path.write_bytes(broken)
        with pytest.raises(FormatError):
            _core.LayerFile(str(path))


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        (8, 2, "format version 2, but this lsg reads version 1"),
        (12, 0x04030201, "another byte order"),
        (20, 7, "layout 7 version 1 is not known"),
        (24, 2, "layout 1 version 2 is not known"),
        (28, 3, "unknown flags"),
        (36, 0, "num_experts must be 1 to 65536"),
        (36, 1 << 30, "num_experts must be 1 to 65536"),
        (40, 0, "hidden_size must be"),
        (44, 1 << 31, "intermediate_size must be"),
        (48, 0, "unit_rows is 0"),
        (48, 33, "unit_rows must be 32, 64 or 128"),
        (52, 99, "do not follow from its geometry"),
        (56, 8, "unknown dtype 8"),
        (60, 6, "unknown scale dtype 6"),
        (64, 2, "scale_rows must be 1 or 32"),
        (68, 48, "scale_k must be 0 or a power of two"),
        (72, 2, "neither 0 nor 1"),
        (84, 2, "neither 0 nor 1"),
        (116, 1, "down: k_permutation must be 0"),
        (120, 1, "do not follow"),
        (136, 0, "do not follow"),
        (152, 1 << 31, "do not follow"),
        (1000, 1, "do not follow"),
    ],
)
def test_a_hostile_header_with_a_right_checksum_is_refused(
    tmp_path: Path, offset: int, value: int, sentence: str
):
    path = tmp_path / "x.lsgb"
    data = bytearray(write_file(path, spec_of()))
    struct.pack_into("<I", data, offset, value)
    struct.pack_into("<I", data, 4092, google_crc32c.value(bytes(data[:4092])))
    path.write_bytes(data)
    with pytest.raises(FormatError, match=sentence):
        _core.LayerFile(str(path))


@pytest.mark.parametrize("keep", [0, 1, 4095, 4096, 8192, -1])
def test_truncated_files_are_refused(tmp_path: Path, keep: int):
    path = tmp_path / "x.lsgb"
    data = write_file(path, spec_of())
    path.write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"shorter than|but its header says"):
        _core.LayerFile(str(path))


def test_longer_files_and_other_things_are_refused(tmp_path: Path):
    path = tmp_path / "x.lsgb"
    path.write_bytes(write_file(path, spec_of()) + b"\0")
    with pytest.raises(FormatError, match="but its header says"):
        _core.LayerFile(str(path))
    with pytest.raises(FormatError, match="cannot be opened"):
        _core.LayerFile(str(tmp_path / "none"))
    with pytest.raises(FormatError):
        _core.LayerFile(str(tmp_path))


def test_wrong_matrices_are_refused():
    spec = spec_of(_core.PanelFormat(_core.Dtype.BF16))
    good, down = _core.Matrix(np.zeros((80, 96), np.uint16)), _core.Matrix(np.zeros((96, 80), np.uint16))
    with pytest.raises(FormatError, match=r"gate codes: expected .*\(80, 96\).*found shape \(96, 80\)"):
        _core.pack_expert(spec, down, good, down)
    with pytest.raises(FormatError, match=r"up codes: .* 2 bytes an item, found .* with 1"):
        _core.pack_expert(spec, good, _core.Matrix(np.zeros((80, 96), np.uint8)), down)
    with pytest.raises(FormatError, match="gate must be given exactly when"):
        _core.pack_expert(spec, None, good, down)
    with pytest.raises(FormatError, match="exactly when the panel format has them"):
        _core.pack_expert(
            spec, good, good, _core.Matrix(np.zeros((96, 80), np.uint16), np.zeros((96, 3), np.uint16))
        )
    with pytest.raises(FormatError, match="contiguous"):
        _core.pack_expert(spec, good, good, _core.Matrix(np.zeros((80, 96), np.uint16).T))


def permuted(order: list[int]) -> _core.Matrix:
    return _core.Matrix(np.zeros((2, 3), np.uint16), input_order=np.array(order, np.uint32))


def test_the_input_order_lies_where_the_text_says():
    order = [2, 0, 1]
    panel = _core.PanelFormat(_core.Dtype.BF16, bias=True, k_permutation=True)
    down = _core.PanelFormat(_core.Dtype.BF16, bias=True)
    spec = spec_of(panel, down, hidden_size=3, intermediate_size=2)
    bias = np.zeros(2, np.float32)
    up = _core.Matrix(np.zeros((2, 3), np.uint16), bias=bias, input_order=np.array(order, np.uint32))
    matrix = _core.Matrix(np.zeros((3, 2), np.uint16), bias=np.ones(3, np.float32))
    # Down's biases come first: two experts of 64 floats.
    found = _core.pack_table(spec, 1, up, up, matrix)
    assert found[-1] == (spec.table_offset + 2 * 64 * 4 + 1 * 3 * 4, np.array(order, "<u4").tobytes())
    assert spec.table_bytes == 4096


@pytest.mark.parametrize("bad", [[0, 1, 1], [0, 1, 3], [0, 1, 1 << 31]])
def test_orders_that_are_no_permutation_are_refused(tmp_path: Path, bad: list[int]):
    panel, down = (_core.PanelFormat(_core.Dtype.BF16, k_permutation=k) for k in (True, False))
    spec = spec_of(panel, down, hidden_size=3, intermediate_size=2)
    matrix = _core.Matrix(np.zeros((3, 2), np.uint16))
    good = permuted([0, 1, 2])
    with pytest.raises(FormatError, match="no permutation of 3 inputs"):
        _core.pack_table(spec, 0, good, permuted(bad), matrix)
    with pytest.raises(FormatError, match="gate and up must have one input order"):
        _core.pack_table(spec, 0, permuted([1, 0, 2]), good, matrix)
    with pytest.raises(FormatError, match="exactly when the panel format has them"):
        _core.pack_table(spec, 0, good, _core.Matrix(np.zeros((2, 3), np.uint16)), matrix)
    with pytest.raises(FormatError, match=r"input order: expected shape \(3,\)"):
        _core.pack_table(spec, 0, permuted([0, 1]), permuted([0, 1]), matrix)
    data = bytearray(write_file(tmp_path / "x.lsgb", spec))
    for expert, order in enumerate([[2, 1, 0], bad]):
        struct.pack_into("<3I", data, spec.table_offset + 12 * expert, *order)
    (tmp_path / "x.lsgb").write_bytes(data)
    file = _core.LayerFile(str(tmp_path / "x.lsgb"))
    assert _core.unpack_expert(spec, file.expert(0), file.table(), 0)[1].input_order.tolist() == [2, 1, 0]
    with pytest.raises(FormatError, match="expert 1: its input order is no permutation of 3"):
        _core.unpack_expert(spec, file.expert(1), file.table(), 1)
    with pytest.raises(FormatError, match=r"x.lsgb: expert 1: its input order is no permutation of 3"):
        _core.Engine(threads=1).add_layer(str(tmp_path / "x.lsgb"))


def test_crc32c_against_a_library():
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 1000, 3071, 3072, 3073, 4097, 20_000):
        data = rng.integers(0, 256, size, np.uint8)
        assert _core.crc32c(data) == google_crc32c.value(data.tobytes())
        half = size // 2
        assert _core.crc32c(data[half:], _core.crc32c(data[:half])) == google_crc32c.value(data.tobytes())
