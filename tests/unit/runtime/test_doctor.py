import json
from dataclasses import replace

import machines
import pytest
from click.testing import CliRunner
from machines import GIB, Tree

from lsg.cli import main
from lsg.runtime import doctor, doctor_facts
from lsg.runtime.doctor_command import ranges
from lsg.runtime.doctor_facts import Facts
from lsg.runtime.limits import Limits


def facts(nodes=(32, 32), **changes):
    """A machine that needs no advice, but for the changes."""
    host = changes.pop("host", None) or machines.host(nodes)
    good = Facts(host, "AMD EPYC", "vnni", False, 1, 64, 128 * GIB, "madvise", ("performance",))
    return replace(good, **changes)


def advice(given):
    return [finding for finding in doctor.examine(given) if finding.level == "advice"]


def test_a_good_machine_needs_no_advice():
    assert not advice(facts())


def limited(**limits):
    return replace(machines.host([32, 32]), limits=Limits(**limits))


def gpu(**link):
    host = machines.host([32, 32], gpu_nodes=[1])
    [found] = host.topology.gpus
    return replace(host, topology=replace(host.topology, gpus=(replace(found, **link),)))


def filled():
    host = machines.host([32, 32])
    first, second = host.topology.nodes
    nodes = (replace(first, available_bytes=20 * GIB), second)
    return replace(host, topology=replace(host.topology, nodes=nodes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"isa": "avx2"}, ["avx2", "VNNI", "choose a processor"]),
        ({"isa": "avx2", "virtual": True}, ["virtual machine"]),
        ({"nodes": (64,)}, ["1 NUMA node on 1 socket;", "NPS4", "BIOS"]),
        ({"nodes": (32, 32), "sockets": 2, "cpu": "Intel(R) Xeon(R)"}, ["SNC4", "BIOS"]),
        ({"nodes": (64,), "virtual": True}, ["hypervisor"]),
        ({"nodes": (32, 8)}, ["node 1 with 8 cores", "cpuset"]),
        ({"host": filled()}, ["node 0: 21.47 GB of 68.72 GB", "--spill"]),
        ({"host": limited(memory_bytes=8 * GIB, memory_left_bytes=GIB)}, ["8.59 GB", "kills", "--memory"]),
        ({"host": limited(quota_cpus=3.5)}, ["3.5 CPUs", "--cpuset-cpus"]),
        ({"host": limited(locked_bytes=8 << 20)}, ["8.389 MB", "ulimit -l"]),
        ({"huge_pages": "never"}, ["never", "echo madvise"]),
        ({"reserved_huge_bytes": 2 * GIB}, ["2.147 GB", "vm.nr_hugepages=0"]),
        ({"governors": ("performance", "powersave")}, ["performance, powersave", "cpupower"]),
        ({"swap_bytes": GIB}, ["1.074 GB of swap", "swapoff"]),
        ({"numa_balancing": True}, ["kernel.numa_balancing=0"]),
        ({"host": gpu(link_width=8, link_width_max=16)}, ["PCIe x8", "x16", "bifurcation"]),
    ],
)
def test_advice_says_what_why_and_what_to_do(changes, words):
    [finding] = advice(facts(**changes))
    assert finding.found
    assert finding.why
    assert finding.action
    text = f"{finding.found} {finding.why} {finding.action}"
    for word in words:
        assert word in text


def test_odd_nodes_are_named():
    host = machines.host({0: 8, 1: 8, 4: 0}, gib={1: 0})
    notes = [finding.found for finding in doctor.examine(facts(host=host)) if finding.level == "note"]
    assert "node 1, without memory: its cores work for node 0" in notes
    assert any(note.startswith("node 4 has 68.72 GB and no usable core") for note in notes)


def test_what_the_kernel_says_is_read(tmp_path):
    tree = Tree(tmp_path)
    tree.add_node(0, "0-1", total_gib=8, free_gib=4)
    tree.write("proc/cpuinfo", "model name\t: A Processor\nflags\t\t: fpu hypervisor sse")
    tree.write(
        "proc/meminfo",
        "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 1024 kB\n"
        "HugePages_Free:      512\nHugepagesize:       2048 kB",
    )
    tree.write("proc/sys/kernel/numa_balancing", 1)
    tree.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    tree.write("sys/devices/system/cpu/online", "0-1")
    for cpu in (0, 1):
        tree.write(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", 0)
        tree.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "schedutil")
    found = doctor_facts.observe("amx", tmp_path, {0})
    assert (found.cpu, found.isa, found.virtual, found.sockets) == ("A Processor", "amx", True, 1)
    assert (found.online_cpus, found.memory_bytes, found.swap_bytes) == (2, 8 * GIB, 1 << 20)
    assert found.reserved_huge_bytes == GIB
    assert (found.huge_pages, found.governors, found.numa_balancing) == ("never", ("schedutil",), True)
    assert any("1 of 2 logical CPUs" in finding.found for finding in doctor.examine(found))


def test_the_command_on_this_machine():
    run = CliRunner().invoke(main, ["doctor", "--json"])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["machine"]["host"]["topology"]["nodes"]
    assert {finding["topic"] for finding in report["findings"]} >= {"processor", "nodes", "memory"}
    plain = CliRunner().invoke(main, ["doctor"])
    assert plain.exit_code == 0
    for finding in report["findings"]:
        assert finding["topic"] in plain.stdout


def test_a_bad_setting_is_one_sentence():
    run = CliRunner().invoke(main, ["doctor"], env={"LSG_ISA": "mmx"})
    assert run.exit_code == 1
    assert "LSG_ISA=mmx" in run.stderr


def test_ranges():
    assert ranges((5, 0, 1, 2)) == "0-2,5"
    assert ranges(()) == ""
