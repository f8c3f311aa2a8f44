import pytest

from lsg import LsgError
from lsg._core import crc32c
from lsg.convert.journal import Identity, Journal, ResidentDone, ShardIdentity, SlabDone, last_identity


def identity(shards, *, created_by="lsg-convert 1", experts="int4", revision=None, config=7):
    return Identity(created_by, {"experts": experts}, "", None, revision, config, shards)


A, B = ShardIdentity("a", 1, "2", 3), ShardIdentity("b", 1, "2", 3)
IDENTITY = identity([A])
ENTRIES = [
    SlabDone(0, 0, 123, [(0.1, 1 / 3), None, (1e-300, 2.0)], [(4096, 8, 7)]),
    SlabDone(0, 1, 456, [None, None, None], []),
    ResidentDone("model-00001-of-00001.safetensors", "a"),
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
        (identity([A], experts="bf16"), "options experts=int4 instead of experts=bf16"),
        (identity([A], created_by="lsg-convert 2"), "1 instead of lsg-convert 2"),
        (identity([A], config=8), "another config.json"),
        (identity([A], revision="c0ffee"), "a local directory instead of a local directory at c0ffee"),
        (identity([ShardIdentity("a", 1, "2", 4)]), "another version of a"),
        (identity([ShardIdentity("a", 9, "2", 3)]), "another version of a"),
        (identity([]), "another version of a"),
        (identity([ShardIdentity("a", 1, "9", 3)]), ""),
    ],
)
def test_says_in_what_two_conversions_differ(other, words):
    difference = IDENTITY.difference(other)
    assert difference == words or (words and words in difference)


def test_a_shard_downloaded_again_takes_back_only_what_came_from_it(tmp_path):
    path = tmp_path / "journal"
    shards_of = {0: "a", 1: "b", 2: "ab"}
    slabs = [SlabDone(0, expert, 1, [None, None, None], []) for expert in shards_of]
    repaired = ShardIdentity("b", 1, "later", 3)

    def current(shards, *append):
        journal = Journal(path, identity(shards))
        journal.append(append)
        found = journal.current(lambda slab: shards_of[slab.expert])
        journal.close()
        return [slab.expert for slab in found]

    assert current([A, B], *slabs) == [0, 1, 2]
    assert current([A, repaired]) == [0]
    assert current([A, repaired], slabs[1]) == [0, 1]
    assert current([A, repaired]) == [0, 1]
    assert last_identity(path) == identity([A, repaired])
    assert current([A, B]) == [0, 1, 2]
