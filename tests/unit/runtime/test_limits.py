import pytest
from machines import GIB, Tree

from lsg.runtime import limits
from lsg.runtime.limits import Limits


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def observed(tree):
    found = limits.observe(tree.root)
    return found.quota_cpus, found.memory_bytes, found.memory_left_bytes


def test_no_groups_no_limits(tree):
    assert observed(tree) == (None, None, None)


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_version_2_the_tightest_group_binds(tree, mount):
    tree.write("proc/self/cgroup", "0::/a/b")
    tree.write(f"{mount}/a/b/cpu.max", "max 100000")
    tree.write(f"{mount}/a/cpu.max", "250000 100000")
    tree.write(f"{mount}/a/memory.max", 8 * GIB)
    tree.write(f"{mount}/a/memory.current", 5 * GIB)
    # Page cache is given back on demand, so it is room.
    tree.write(f"{mount}/a/memory.stat", f"anon 7\nactive_file {GIB}\ninactive_file {GIB}")
    tree.write(f"{mount}/a/b/memory.max", "max")
    assert observed(tree) == (2.5, 8 * GIB, 5 * GIB)


@pytest.mark.parametrize("shown", ["/docker/abc", "/"])
def test_version_1_and_a_container_that_shows_the_hosts_path(tree, shown):
    tree.write("proc/self/cgroup", f"5:cpu,cpuacct:{shown}\n4:memory:{shown}")
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", 150000)
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 4 * GIB)
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    tree.write("sys/fs/cgroup/memory/memory.stat", f"total_active_file 0\ntotal_inactive_file {2 * GIB}")
    assert observed(tree) == (1.5, 4 * GIB, 3 * GIB)


def test_version_1_without_limits(tree):
    tree.write("proc/self/cgroup", "5:cpu:/\n4:memory:/")
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", (1 << 63) - 4096)
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", GIB)
    assert observed(tree) == (None, None, None)


def test_this_process():
    assert isinstance(limits.observe(), Limits)
