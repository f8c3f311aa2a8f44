import machines
import pytest
from machines import GIB, Tree

from lsg.runtime import host
from lsg.runtime.topology import Core


def test_the_tightest_of_machine_and_groups_binds(tmp_path):
    tree = Tree(tmp_path)
    tree.add_node(0, "0-3", total_gib=64)
    tree.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB")
    assert host.observe(tmp_path, {0, 1, 2, 3}).memory_available_bytes == 32 * GIB
    tree.write("proc/self/cgroup", "0::/")
    tree.write("sys/fs/cgroup/memory.max", 8 * GIB)
    tree.write("sys/fs/cgroup/memory.current", 5 * GIB)
    tree.write("sys/fs/cgroup/cpu.max", "250000 100000")
    found = host.observe(tmp_path, {0, 1, 2, 3})
    assert found.memory_available_bytes == 3 * GIB
    assert found.usable_cores == 2


def test_this_machine_has_a_core_and_memory():
    found = host.observe()
    assert found.cores
    assert found.memory_available_bytes > 0
    assert found.home_nodes


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 1, 2), (8, 1, 4), (9, 1, 5), (96, 1, 92), (96, 2, 46), (4, 8, 1)],
)
def test_default_threads(cores, processes, threads):
    assert machines.host([cores]).default_threads(processes) == threads


def test_default_threads_within_a_quota():
    assert machines.host([64], quota_cpus=16.0).default_threads() == 12


@pytest.mark.parametrize(
    ("nodes", "gib", "homes", "homes_of_cores"),
    [
        ({0: 2, 1: 2}, {}, (0, 1), [0, 0, 1, 1]),
        # Memory without CPUs is nobody's home; cores without memory work for the nearest.
        ({0: 2, 3: 0}, {}, (0,), [0, 0]),
        ({0: 1, 1: 1, 4: 1}, {1: 0}, (0, 4), [0, 4, 4]),
        # All memory is elsewhere: its own node computes nothing, the nearest with CPUs reads it.
        ({0: 2, 1: 0}, {0: 0}, (1,), [1, 1]),
        ({2: 1}, {2: 0}, (2,), [2]),
    ],
)
def test_homes(nodes, gib, homes, homes_of_cores):
    found = machines.host(nodes, gib=gib, distances={(1, 0): 31, (1, 4): 12})
    assert found.home_nodes == homes
    assert [found.home_of(core) for core in found.cores] == homes_of_cores


def test_a_core_is_its_cpus_and_its_node():
    assert machines.host({5: 1}, smt=2).cores == (Core((0, 1), 5),)
