from itertools import pairwise

import machines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsg import CapacityError, CompatError
from lsg.runtime import placement
from lsg.runtime.placement import unit_range

# Intermediate sizes of real models that do not divide evenly, and how many rows a unit of theirs has.
SIZES = {512: 32, 640: 32, 704: 32, 768: 32, 1408: 32, 2880: 64}


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("intermediate", SIZES)
def test_unit_ranges_of_real_sizes(intermediate, nodes):
    units = -(-intermediate // SIZES[intermediate])
    placed = placement.plan(machines.host([6] * nodes))
    ranges = placed.node_ranges(0, units)
    sizes = [end - begin for _, begin, end in ranges]
    base, remainder = divmod(units, nodes)
    assert sizes == [base + 1] * remainder + [base] * (nodes - remainder)
    assert [node for node, _, _ in ranges] == list(range(nodes))


@given(st.lists(st.integers(1, 96), min_size=1, max_size=32), st.integers(0, 60), st.integers(0, 40))
def test_node_ranges_cover_each_unit_once_and_are_fair(cores, begin, count):
    placed = placement.Placement(
        tuple(placement.NodeTeam(node, ((node,),), size) for node, size in enumerate(cores))
    )
    ranges = placed.node_ranges(begin, begin + count)
    assert ranges[0][1] == begin
    assert ranges[-1][2] == begin + count
    assert all(before[2] == after[1] for before, after in pairwise(ranges))
    for (_, first, last), size in zip(ranges, cores, strict=True):
        assert abs((last - first) - count * size / sum(cores)) < 1


@given(st.integers(1, 100), st.data())
def test_ranks_cover_each_unit_once(ranks, data):
    num_units = data.draw(st.integers(ranks, 200))
    ranges = [unit_range(num_units, rank, ranks) for rank in range(ranks)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_units
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    sizes = {end - begin for begin, end in ranges}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_units_is_refused():
    with pytest.raises(CompatError, match="splits into 2 units"):
        unit_range(2, 0, 3)


def cpus(placed):
    return [[list(worker) for worker in team.cpus] for team in placed.teams]


def test_on_one_node_the_caller_is_the_first_worker():
    placed = placement.plan(machines.host([8]))
    assert cpus(placed) == [[[4], [5], [6], [7]]]
    assert [workers.cpus for workers in placed.workers] == [[[], [5], [6], [7]]]
    # Not beside other nodes: the caller may run there.
    placed = placement.plan(machines.host([8, 8]), processes=2, threads=2)
    assert [workers.cpus for workers in placed.workers] == [[[6], [7]]]


def test_threads_are_shared_by_the_nodes_and_leave_each_some_cores():
    assert cpus(placement.plan(machines.host([4, 4]), threads=5)) == [[[1], [2], [3]], [[6], [7]]]


def test_hyperthreads_come_after_all_cores():
    placed = placement.plan(machines.host([2, 2], smt=2), threads=6)
    assert cpus(placed) == [[[0], [1], [4]], [[2], [3], [6]]]


def test_bound_to_nodes():
    placed = placement.plan(machines.host([2, 2], smt=2), threads=3, bind="node")
    assert cpus(placed) == [[[0, 1, 4, 5]] * 2, [[2, 3, 6, 7]]]


def test_fewer_threads_than_nodes():
    placed = placement.plan(machines.host([1, 2, 2]), threads=2)
    assert [team.node for team in placed.teams] == [1, 2]
    assert placed.node_units(5) == [3, 2]


def test_cores_without_memory_work_for_their_nearest_home():
    host = machines.host({0: 2, 1: 2, 7: 2}, gib={1: 0}, distances={(1, 0): 30, (1, 7): 20})
    placed = placement.plan(host, threads=6)
    assert [team.node for team in placed.teams] == [0, 7]
    assert cpus(placed) == [[[0], [1]], [[2], [3], [4], [5]]]
    assert placed.node_units(9) == [3, 6]


# A busy machine may take any time; nothing here is timed.
@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_processes_never_share_a_core_and_get_as_many(nodes, processes, data):
    nodes = [*nodes, 1]
    gpu_nodes = data.draw(st.lists(st.sampled_from([None, *range(len(nodes))]), max_size=processes))
    host = machines.host(nodes, smt=2, gpu_nodes=gpu_nodes)
    if processes > sum(nodes):
        with pytest.raises(CapacityError, match="start fewer"):
            placement.plan(host, threads=1, processes=processes)
        return
    threads = data.draw(st.integers(1, sum(nodes) // processes * 2))
    used = []
    for process in range(processes):
        placed = placement.plan(host, threads=threads, process=process, processes=processes)
        assert placed.threads == threads
        workers = [worker for team in placed.teams for worker in team.cpus]
        assert all(len(worker) == 1 for worker in workers)
        used += [worker[0] for worker in workers]
        whole = placement.plan(host, threads=threads, process=process, processes=processes, bind="node")
        assert all(
            set(mine) <= set(all_of)
            for mine, all_of in zip(
                workers, [worker for team in whole.teams for worker in team.cpus], strict=True
            )
        )
    assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("nodes", "gpu_nodes", "homes"),
    [
        ([4, 4], [1, 0], [{1}, {0}]),
        ([4, 4], [1, 1], [{1}, {1}]),
        ([4, 4], [None, None], [{0}, {1}]),
        ([4] * 4, [3, 0], [{2, 3}, {0, 1}]),
        ([4] * 4, [], [{0, 1}, {2, 3}]),
        ([8], [0, 0], [{0}, {0}]),
    ],
)
def test_each_process_gets_the_nodes_nearest_its_gpu(nodes, gpu_nodes, homes):
    near = {(a, b): 12 for a, b in [(0, 1), (1, 0), (2, 3), (3, 2)]} if len(nodes) == 4 else {}
    host = machines.host(nodes, gpu_nodes=gpu_nodes, distances=near)
    for process, expected in enumerate(homes):
        # As many threads as the process has cores would show every node it has.
        threads = sum(nodes) // 2 if gpu_nodes != [1, 1] else 2
        placed = placement.plan(host, threads=threads, process=process, processes=2)
        assert {team.node for team in placed.teams} >= expected
        assert placed.teams[-1 if expected == {1} else 0].node in expected


def test_more_threads_than_cpus_is_refused():
    with pytest.raises(CapacityError, match="choose --threads 4 or less"):
        placement.plan(machines.host([8]), threads=5, processes=2)


@pytest.mark.parametrize(("cores", "replicas", "each"), [([8, 8], 2, 1), ([7, 9], 2, 2), ([6, 2, 5], 2, 1)])
def test_replicas_agree_where_a_page_belongs_and_share_no_core(cores, replicas, each):
    placed = [
        placement.plan(
            machines.host(cores), threads=2, process=process, processes=replicas * each, replicas=replicas
        )
        for process in range(replicas * each)
    ]
    cpus = [cpu for one in placed for cpu in one.cpus]
    assert len(cpus) == len(set(cpus))
    for rank in range(each):
        ranges = [placed[replica * each + rank].memory(0, 24) for replica in range(replicas)]
        assert ranges == [ranges[0]] * replicas


def test_replicas_take_the_gpus_in_turn():
    host = machines.host([8, 8], gpu_nodes=[0, 1, 1, 0])
    nodes = [
        [team.node for team in placement.plan(host, threads=2, process=n, processes=4, replicas=2).teams]
        for n in range(4)
    ]
    assert nodes == [[0], [1], [1], [0]]


def test_more_replicas_than_a_node_has_cores_are_refused():
    with pytest.raises(CapacityError, match="3 data-parallel replicas, but no NUMA node has as many cores"):
        placement.plan(machines.host([2, 2]), threads=1, process=0, processes=3, replicas=3)
