import pytest
from machines import GIB, Tree

from lsg.runtime import topology
from lsg.runtime.topology import Core, Gpu


@pytest.fixture
def tree(tmp_path):
    """Two nodes of two cores with two hyperthreads each, numbered as Linux does: siblings are n and n + 4."""
    tree = Tree(tmp_path)
    tree.add_siblings((0, 4), (1, 5), (2, 6), (3, 7))
    tree.add_node(0, "0-1,4-5", total_gib=32, free_gib=8, distance="10 21")
    tree.add_node(1, "2-3,6-7", total_gib=48, free_gib=9, distance="21 10")
    return tree


def test_cores_siblings_and_nodes(tree):
    found = topology.observe(tree.root, set(range(8)))
    assert found.cores == (Core((0, 4), 0), Core((1, 5), 0), Core((2, 6), 1), Core((3, 7), 1))
    assert [node.index for node in found.nodes] == [0, 1]
    assert found.node(1).cpus == (2, 3, 6, 7)
    assert [node.memory_bytes for node in found.nodes] == [32 * GIB, 48 * GIB]
    assert [node.available_bytes for node in found.nodes] == [8 * GIB, 9 * GIB]
    assert found.node(0).distance(1) == 21


def test_cpu_set_hides_siblings_and_cores(tree):
    assert topology.observe(tree.root, {1, 2, 6}).cores == (Core((1,), 0), Core((2, 6), 1))


def test_sparse_numbers_and_nodes_without_cpus_or_memory(tree):
    # An accelerator's memory as node 8, and cores without memory as node 10.
    tree.add_siblings((8,))
    tree.add_node(8, "", total_gib=96, free_gib=96, distance="31 21 10 41")
    tree.add_node(10, "8", total_gib=0, distance="25 35 41 10")
    found = topology.observe(tree.root, set(range(9)))
    assert [node.index for node in found.nodes] == [0, 1, 8, 10]
    assert found.node(10).distance(8) == 41
    assert not found.node(10).holds_memory
    assert found.node(8).cpus == ()
    assert found.cores[-1] == Core((8,), 10)
    assert found.nearest(8, [0, 1, 10]) == 1
    assert found.nearest(10, [0, 1]) == 0
    assert found.nearest(0, []) is None


def test_a_cpuset_may_forbid_a_node(tree):
    tree.write("proc/self/status", "Cpus_allowed_list:\t0-3\nMems_allowed_list:\t1")
    assert [node.holds_memory for node in topology.observe(tree.root, {0, 2}).nodes] == [False, True]


def test_what_the_kernel_keeps_is_not_available(tree):
    # As Linux 6.1 writes it, shortened. The small zone may be kept whole: its reserve is larger than it is.
    zones = [("0", "DMA", 49, 3840, "0, 1923, 31923"), ("0", "Normal", 9000, 8 << 18, "0, 0, 0")]
    text = "".join(
        f"Node {node}, zone {name:>8}\n  pages free     3840\n        high     {high}\n"
        f"        managed  {managed}\n        protection: ({protection})\n      nr_free_pages 3840\n"
        for node, name, high, managed, protection in zones
    )
    tree.write("proc/zoneinfo", text)
    found = topology.observe(tree.root, {0, 2})
    kept = [8 * GIB - found.node(0).available_bytes, 9 * GIB - found.node(1).available_bytes]
    assert kept == [(3840 + 9000) * 4096, 0]


def test_a_kernel_without_numa_has_one_node(tmp_path):
    tree = Tree(tmp_path)
    tree.write("sys/devices/system/cpu/online", "0-1")
    tree.write("proc/meminfo", "MemTotal: 2097152 kB\nMemFree: 100 kB\nMemAvailable: 1048576 kB")
    found = topology.observe(tmp_path, {0, 1})
    assert len(found.cores) == 2
    [node] = found.nodes
    assert (node.index, node.cpus, node.memory_bytes, node.available_bytes) == (0, (0, 1), 2 * GIB, GIB)


def test_gpus_and_their_links(tree):
    link = {"current_link_width": 8, "max_link_width": 16}
    tree.add_gpu(
        "0000:c1:00.0", 1, **link, current_link_speed="16.0 GT/s PCIe", max_link_speed="32.0 GT/s PCIe"
    )
    tree.add_gpu("0001:01:00.0", -1, current_link_width=255, max_link_width=0, current_link_speed="Unknown")
    tree.add_gpu("0000:02:00.0", 0, vendor="0x8086")
    tree.add_gpu("0000:03:00.0", 0, **{"class": "0x020000"})
    found = topology.observe(tree.root, set(range(8)))
    assert found.gpus == (Gpu("0000:c1:00.0", 1, 8, 16, 16.0, 32.0), Gpu("0001:01:00.0", None))


@pytest.mark.parametrize("address", ["0000:c1:00.0", "00000000:C1:00.0", "c1:00.0"])
def test_cuda_and_the_kernel_write_addresses_differently(tree, address):
    tree.add_gpu("0000:c1:00.0", 1)
    assert topology.observe(tree.root, {0}).gpu_node(address) == 1
    assert topology.observe(tree.root, {0}).gpu_node("0000:c2:00.0") is None


def test_this_machine():
    found = topology.observe()
    assert found.cores
    assert all(any(node.index == core.node for node in found.nodes) for core in found.cores)
    assert sum(node.memory_bytes for node in found.nodes) > 0


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("0-1,4-5\n", [0, 1, 4, 5])]
)
def test_parse_list(text, numbers):
    assert topology.parse_list(text) == numbers
