import pytest

from lsg import CapacityError
from lsg.runtime import host
from lsg.runtime.host import Core, Host

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """Two nodes of two cores with two hyperthreads each, numbered as Linux does: siblings are n and n + 4."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}\n"
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    write("sys/devices/system/node/node0/cpulist", "0-1,4-5\n")
    write("sys/devices/system/node/node1/cpulist", "2-3,6-7\n")
    write("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n")
    write("proc/self/cgroup", "4:memory:/x\n0::/a/b\n")
    return tmp_path, write


def test_cores_siblings_and_nodes(machine):
    root, _ = machine
    found = host.observe(root, set(range(8)))
    assert found.cores == (Core((0, 4), 0), Core((1, 5), 0), Core((2, 6), 1), Core((3, 7), 1))
    assert found.nodes == (0, 1)
    assert found.quota_cpus is None
    assert found.memory_available_bytes == 32 * GIB


def test_cpu_set_hides_siblings_and_cores(machine):
    root, _ = machine
    found = host.observe(root, {1, 2, 6})
    assert found.cores == (Core((1,), 0), Core((2, 6), 1))


def test_the_tightest_cgroup_limit_binds(machine):
    root, write = machine
    write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    write("sys/fs/cgroup/a/cpu.max", "250000 100000\n")
    write("sys/fs/cgroup/a/memory.max", f"{8 * GIB}\n")
    write("sys/fs/cgroup/a/memory.current", f"{5 * GIB}\n")
    # Page cache is given back on demand, so it is room.
    write("sys/fs/cgroup/a/memory.stat", f"anon 7\nactive_file {GIB}\ninactive_file {GIB}\n")
    found = host.observe(root, set(range(8)))
    assert found.quota_cpus == 2.5
    assert found.usable_cores == 2
    assert found.memory_available_bytes == 5 * GIB


def test_this_machine_has_a_core_and_memory():
    found = host.observe()
    assert found.cores
    assert found.memory_available_bytes > 0


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("0-1,4-5\n", [0, 1, 4, 5])]
)
def test_parse_list(text, numbers):
    assert host.parse_list(text) == numbers


def flat(cores, quota=None):
    return Host(tuple(Core((cpu,), 0) for cpu in range(cores)), quota, GIB)


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 1, 2), (8, 1, 4), (9, 1, 5), (96, 1, 92), (96, 2, 46), (4, 8, 1)],
)
def test_default_threads(cores, processes, threads):
    assert flat(cores).default_threads(processes) == threads


def test_default_threads_within_a_quota():
    assert flat(64, quota=16.0).default_threads() == 12


def test_hyperthreads_come_after_all_cores():
    smt = Host(tuple(Core((cpu, cpu + 4), 0) for cpu in range(4)), None, GIB)
    assert smt.cpus_for(6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("cores", "processes"), [(8, 2), (7, 3), (5, 5)])
def test_processes_never_share_a_core(cores, processes):
    taken = []
    for process in range(processes):
        taken += flat(cores).cpus_for(cores // processes, process, processes)
    assert len(taken) == len(set(taken))


def test_more_threads_than_cpus_is_refused():
    with pytest.raises(CapacityError, match="choose --threads 4 or less"):
        flat(8).cpus_for(5, 0, 2)
