import pytest

from lsg import LsgError
from lsg._core import crc32c
from lsg.convert.journal import Identity, Journal, ResidentDone, ShardIdentity, SlabDone

IDENTITY = Identity("lsg-convert 1", {"experts": "int4"}, 7, [ShardIdentity("a", 1, 2, 3)])
ENTRIES = [
    SlabDone(0, 0, 123, [(0.1, 1 / 3), None, (1e-300, 2.0)]),
    SlabDone(0, 1, 456, [None, None, None]),
    ResidentDone("model-00001-of-00001.safetensors", 99),
]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, IDENTITY)
    assert journal.found is None
    journal.append(ENTRIES[:2])
    journal.append(ENTRIES[2:])
    journal.close()
    return path


def reopen(path, identity=IDENTITY):
    journal = Journal(path, identity)
    journal.close()
    return journal


def test_comes_back_as_it_was(written):
    journal = reopen(written)
    assert journal.found == IDENTITY
    assert journal.entries == ENTRIES


def test_truncated_anywhere_it_keeps_its_whole_lines_and_goes_on(written):
    data = written.read_bytes()
    for length in range(len(data)):
        written.write_bytes(data[:length])
        journal = Journal(written, IDENTITY)
        whole = data[:length].count(b"\n")
        assert journal.entries == ENTRIES[: max(0, whole - 1)]
        assert (journal.found is None) == (whole == 0)
        journal.append(ENTRIES[len(journal.entries) :])
        journal.close()
        assert written.read_bytes() == data


def test_damaged_anywhere_it_believes_only_what_lies_before(written):
    data = written.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        written.write_bytes(damaged)
        whole = data[:position].count(b"\n")
        assert reopen(written).entries == ENTRIES[: max(0, whole - 1)]


def test_a_tail_of_zeros_is_torn(written):
    data = written.read_bytes()
    written.write_bytes(data + bytes(500))
    assert reopen(written).entries == ENTRIES
    assert written.read_bytes() == data


def test_entries_of_another_version(written):
    payload = b'{"type":"novelty"}'
    with written.open("ab") as file:
        file.write(b"%08x %s\n" % (crc32c(payload), payload))
    with pytest.raises(LsgError, match=r"another version of lsg-convert .* --restart"):
        reopen(written)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (IDENTITY, ""),
        (
            Identity("lsg-convert 1", {"experts": "bf16"}, 7, IDENTITY.shards),
            "options experts=int4 instead of experts=bf16",
        ),
        (Identity("lsg-convert 2", {"experts": "int4"}, 7, IDENTITY.shards), "1 instead of lsg-convert 2"),
        (Identity("lsg-convert 1", {"experts": "int4"}, 8, IDENTITY.shards), "another config.json"),
        (
            Identity("lsg-convert 1", {"experts": "int4"}, 7, [ShardIdentity("a", 1, 9, 3)]),
            "another version of a",
        ),
        (Identity("lsg-convert 1", {"experts": "int4"}, 7, []), "another version of a"),
    ],
)
def test_says_in_what_two_conversions_differ(other, words):
    difference = IDENTITY.difference(other)
    assert difference == words or (words and words in difference)
