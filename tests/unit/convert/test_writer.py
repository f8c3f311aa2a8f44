from contextlib import ExitStack

import numpy as np
import pytest

from lsg._core import Dtype, LayerSpec, Matrix, PanelFormat, ScaleDtype, crc32c, pack_table
from lsg.convert.journal import SlabDone
from lsg.convert.writer import LayerWriter, SlabBuffer, surviving_slabs


def layer(experts, panel=PanelFormat(Dtype.BF16), hidden=64, intermediate=64):  # noqa: B008 (immutable)
    return LayerSpec(
        layer_index=0,
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=True,
        gate_up=panel,
        down=panel,
    )


SPEC = layer(4)
# Its row scales are in the expert table.
ROWS = PanelFormat(Dtype.FP8_E4M3, ScaleDtype.F32)
SLAB_BYTES = SPEC.num_units * SPEC.record_bytes


def records(expert):
    rng = np.random.default_rng(expert)
    return rng.integers(0, 256, (SPEC.num_units, SPEC.record_bytes), dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer"


@pytest.fixture
def done(path):
    """A file with four slabs, and what the journal says of them."""
    with ExitStack() as stack:
        writer = LayerWriter(path, SPEC, stack)
        assert writer.fresh
        for expert in (2, 0, 3, 1):
            writer.write_slab(expert, records(expert))
        return [SlabDone(0, expert, crc32c(records(expert).reshape(-1)), [], []) for expert in range(4)]


def survivors(path, done, reread_bytes, spec=SPEC):
    with ExitStack() as stack:
        slabs = surviving_slabs({0: LayerWriter(path, spec, stack)}, done, reread_bytes)
    return sorted(expert for _, expert in slabs)


def test_geometry_fixes_where_everything_lies(path, done):
    data = np.fromfile(path, np.uint8)
    assert len(data) == SPEC.file_bytes
    assert data[:4096].tobytes() == SPEC.header()
    for expert in range(4):
        for unit, record in enumerate(records(expert)):
            offset = SPEC.record_offset(unit, expert)
            np.testing.assert_array_equal(data[offset : offset + SPEC.record_bytes], record)


@pytest.mark.parametrize("hidden", [64, 1024])
def test_a_buffer_puts_records_where_their_pages_lie(path, hidden):
    spec = layer(3, hidden=hidden + 32)  # records that are no whole number of pages
    buffer = SlabBuffer([SPEC, spec])
    rng = np.random.default_rng(0)
    slabs = rng.integers(0, 256, (3, spec.num_units, spec.record_bytes), np.uint8)
    with ExitStack() as stack:
        writer = LayerWriter(path, spec, stack)
        for expert in (2, 0, 1):
            place = buffer.records(spec, expert)
            for unit, record in enumerate(place):
                assert (record.ctypes.data - spec.record_offset(unit, expert)) % 4096 == 0
            place[:] = slabs[expert]
            writer.write_slab(expert, place)
        assert [writer.slab_crc32c(e) for e in range(3)] == [crc32c(slab.reshape(-1)) for slab in slabs]


def test_a_share_of_the_table_is_written_where_it_belongs_and_nowhere_else(path):
    spec = layer(2, ROWS, intermediate=32)
    matrix = Matrix(np.zeros((32, 64), np.uint8), np.ones((32, 1), np.float32))
    scales = np.arange(64, dtype=np.float32)[:, None]
    entries = pack_table(spec, 1, matrix, matrix, Matrix(np.zeros((64, 32), np.uint8), scales))
    with ExitStack() as stack:
        LayerWriter(path, spec, stack).write_table(entries)
    data = np.fromfile(path, np.uint8)
    table = data[spec.table_offset :].view(np.float32)
    np.testing.assert_array_equal(table[64:128], scales[:, 0])
    table[64:128] = 0
    assert not data[4096:].any()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_slab_whose_share_of_the_table_is_damaged_is_done_again(path, damaged):
    spec = layer(1, ROWS, intermediate=32)
    share = bytes(range(256))  # 64 row scales
    slab = np.zeros((spec.num_units, spec.record_bytes), np.uint8)
    done = SlabDone(0, 0, crc32c(slab.reshape(-1)), [], [(spec.table_offset, len(share), crc32c(share))])
    with ExitStack() as stack:
        writer = LayerWriter(path, spec, stack)
        writer.write_slab(0, slab)
        writer.write_table([(spec.table_offset, share[:-1] + b"?" if damaged else share)])
    assert survivors(path, [done], 1, spec) == ([] if damaged else [0])


def test_a_whole_file_keeps_its_slabs(path, done):
    assert survivors(path, done, 1 << 30) == [0, 1, 2, 3]


def test_a_slab_that_the_journal_does_not_know_is_done_again(path, done):
    assert survivors(path, done[:3], 1 << 30) == [0, 1, 2]


@pytest.mark.parametrize("nbytes", [0, 4096, SPEC.file_bytes - 1, SPEC.file_bytes + 1])
def test_a_file_of_another_size_keeps_nothing(path, done, nbytes):
    with path.open("r+b") as file:
        file.truncate(nbytes)
    assert survivors(path, done, 1 << 30) == []


def test_a_file_without_its_header_keeps_nothing(path, done):
    with path.open("r+b") as file:
        file.write(bytes(4096))
    assert survivors(path, done, 1 << 30) == []
    assert np.fromfile(path, np.uint8)[:4096].tobytes() == SPEC.header()


def damage(path, expert):
    with path.open("r+b") as file:
        file.seek(SPEC.record_offset(SPEC.num_units - 1, expert) + 7)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_only_the_newest_slabs_are_reread(path, done):
    damage(path, 0)
    assert survivors(path, done, SLAB_BYTES) == [0, 1, 2, 3]


def test_one_damaged_slab_among_them_makes_all_be_reread(path, done):
    damage(path, 0)
    damage(path, 3)
    assert survivors(path, done, SLAB_BYTES) == [1, 2]
