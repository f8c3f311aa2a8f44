from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lsg import CapacityError
from lsg.runtime import load_plan
from lsg.runtime.load_plan import Blobs, NodeFound, Room, choose, describe, fit, found

GB = 10**9
BLOBS = Blobs(100 * GB, 40 * GB, maps_huge=False, in_memory=False, huge_pages="madvise")


@pytest.mark.parametrize(
    ("blobs", "mode", "words"),
    [
        (BLOBS, "huge", ["4 KiB", "40 of 100 GB"]),
        (replace(BLOBS, maps_huge=True), "map", ["2 MiB", "nothing is copied", "40 of 100 GB"]),
        (replace(BLOBS, huge_pages="never"), "map", ["transparent_hugepage is never"]),
        (replace(BLOBS, in_memory=True, maps_huge=True), "map", ["would be a second one"]),
    ],
)
def test_auto_explains_itself(blobs, mode, words):
    chosen = choose("auto", blobs)
    assert chosen.mode == mode
    assert "\n" not in chosen.reason
    for word in words:
        assert word in chosen.reason


@pytest.mark.parametrize("mode", ["map", "huge"])
def test_the_user_decides(mode):
    assert choose(mode, replace(BLOBS, maps_huge=True, in_memory=True)).mode == mode


def test_replicas_share_one_copy():
    assert choose("auto", BLOBS, replicas=2).mode == "map"
    assert choose("map", BLOBS, replicas=2).mode == "map"
    with pytest.raises(
        CapacityError, match=r"each of 2 data-parallel replicas .* with --load map they share"
    ):
        choose("huge", BLOBS, replicas=2)


def test_a_machine_without_the_setting_has_no_huge_pages(tmp_path):
    assert load_plan.look_at([], tmp_path) == Blobs(
        0, 0, maps_huge=False, in_memory=False, huge_pages="never"
    )
    setting = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    setting.parent.mkdir(parents=True)
    setting.write_text("always [madvise] never\n")
    assert load_plan.look_at([], tmp_path).huge_pages == "madvise"


LAYERS = [[(0, 0, 8), (1, 8, 16)]] * 10


def test_what_fits_stays():
    rooms = {0: Room(80 * GB), 1: Room(80 * GB)}
    assert fit(LAYERS, [GB] * 10, rooms, spill=False, left_bytes=160 * GB) == LAYERS


@pytest.mark.parametrize("spill", [False, True])
def test_a_limit_on_the_process_is_a_limit(spill):
    rooms = {0: Room(999 * GB), 1: Room(999 * GB)}
    with pytest.raises(
        CapacityError, match=r"need 160 GB .* 159 GB are available to this process; .*control group"
    ):
        fit(LAYERS, [GB] * 10, rooms, spill=spill, left_bytes=159 * GB)


def test_a_short_node_is_refused_with_numbers():
    rooms = {0: Room(999 * GB), 1: Room(50 * GB)}
    with pytest.raises(
        CapacityError, match=r"node 1 needs 80 GB .* 50 GB are available .* --spill .* 919 GB on node 0"
    ):
        fit(LAYERS, [GB] * 10, rooms, spill=False)


@pytest.mark.parametrize("spill", [False, True])
def test_no_room_anywhere_is_refused_with_numbers(spill):
    rooms = {0: Room(85 * GB), 1: Room(50 * GB)}
    with pytest.raises(CapacityError, match=r"node 1 needs 80 GB .* no room for the rest"):
        fit(LAYERS, [GB] * 10, rooms, spill=spill)


def test_the_nearest_node_takes_what_does_not_fit():
    rooms = {
        0: Room(200 * GB, {1: 20, 2: 30, 3: 12}),
        1: Room(70 * GB, {0: 20, 2: 30, 3: 12}),
        2: Room(200 * GB),
        # A node without CPUs: no units belong to it, but it has memory.
        3: Room(6 * GB),
    }
    placed = fit(LAYERS, [GB] * 10, rooms, spill=True)
    assert placed[0] == [(0, 0, 8), (3, 8, 14), (0, 14, 16)]
    assert placed[1] == [(0, 0, 8), (1, 8, 14), (0, 14, 16)]
    assert placed[2:] == LAYERS[2:]


@given(st.data())
def test_spilling_moves_no_more_than_it_must_and_loses_nothing(data):
    nodes = data.draw(st.integers(1, 5))
    layers, sizes = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        cuts = sorted(data.draw(st.lists(st.integers(0, 40), min_size=nodes + 1, max_size=nodes + 1)))
        layers.append([(node, begin, end) for node, (begin, end) in enumerate(pairwise(cuts))])
        sizes.append(data.draw(st.integers(1, 9)))
    rooms = {
        node: Room(
            data.draw(st.integers(0, 600)), {other: data.draw(st.integers(10, 255)) for other in range(6)}
        )
        for node in range(data.draw(st.integers(nodes, 6)))
    }
    try:
        placed = fit(layers, sizes, rooms, spill=True)
    except CapacityError:
        assume(False)
    used = dict.fromkeys(rooms, 0)
    moved = dict.fromkeys(rooms, 0)
    for ranges, given_ranges, size in zip(placed, layers, sizes, strict=True):
        assert ranges[0][1] == given_ranges[0][1]
        assert ranges[-1][2] == given_ranges[-1][2]
        assert all(before[2] == after[1] for before, after in pairwise(ranges))
        for node, begin, end in ranges:
            used[node] += (end - begin) * size
        for unit in range(given_ranges[0][1], given_ranges[-1][2]):
            (home,) = (node for node, begin, end in given_ranges if begin <= unit < end)
            (now,) = (node for node, begin, end in ranges if begin <= unit < end)
            moved[home] += size * (home != now)
    need = {
        node: sum(
            (end - begin) * size
            for ranges, size in zip(layers, sizes, strict=True)
            for owner, begin, end in ranges
            if owner == node
        )
        for node in rooms
    }
    for node, room in rooms.items():
        assert used[node] <= room.available_bytes
        # Whole units move, so at most one too much in each layer.
        assert moved[node] <= max(0, need[node] - room.available_bytes) + max(sizes)


def part(node, size, on, *, unknown=0, huge=0):
    return SimpleNamespace(node=node, bytes=size, bytes_on=on, unknown_bytes=unknown, huge_bytes=huge)


def test_what_was_found_is_added_up_by_node():
    parts = [
        part(0, 600, {0: 600}, huge=600),
        part(1, 500, {0: 1, 1: 499}, huge=250),
        part(0, 400, {0: 400}),
    ]
    assert found(parts) == [NodeFound(0, 1000, 1000, 0, 600), NodeFound(1, 500, 499, 0, 250)]
    assert found([part(-1, 500, {0: 100, 3: 400})]) == [NodeFound(-1, 500, 500, 0, 0)]


@pytest.mark.parametrize(
    ("node", "line"),
    [
        (
            NodeFound(1, 8 * GB, 8 * GB - 1, 0, 4 * GB),
            "node 1: 8 GB of experts, 99.9 % of them there, 50 % in 2 MiB pages",
        ),
        (
            NodeFound(-1, 8 * GB, 8 * GB, 0, 8 * GB),
            "any node: 8 GB of experts, 100 % of them in memory, 100 % in 2 MiB pages",
        ),
        (
            NodeFound(0, GB, 0, GB, 0),
            "node 0: 1 GB of experts, where they are the kernel does not tell, 0 % in 2 MiB pages",
        ),
        (NodeFound(0, 0, 0, 0, 0), "node 0: no experts"),
    ],
)
def test_one_line_for_a_node(node, line):
    assert describe(node) == line
