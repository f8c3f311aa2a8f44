"""The machines that are emulated, and how QEMU is told to be them.

Invariant: software emulation only, so the same machines exist on every host.
"""

from dataclasses import dataclass
from pathlib import Path

from numa.image import GUEST, INTERPRETER, SITE

LOADS = ("serve:map", "serve:huge")
ALWAYS = ("doctor", *LOADS, "reading")
CONTAINERS = ("cpuset:cores", "cpuset:node")
SHORT = ("short:map", "short:huge", "short:map-spill", "short:huge-spill")


@dataclass(frozen=True)
class Node:
    """A NUMA node: its logical CPUs and its memory, either of which may be 0."""

    cpus: int
    mib: int


@dataclass(frozen=True)
class Machine:
    """What to emulate, and the scenarios (scenarios.py) to run there."""

    name: str
    nodes: tuple[Node, ...]
    scenarios: tuple[str, ...]
    threads_per_core: int = 1

    def cpus_of(self, node: int) -> range:
        """Logical CPUs are numbered node by node."""
        first = sum(other.cpus for other in self.nodes[:node])
        return range(first, first + self.nodes[node].cpus)

    def working_nodes(self) -> list[int]:
        """Nodes with CPUs and memory: those that hold a share of the experts."""
        return [number for number, node in enumerate(self.nodes) if node.cpus and node.mib]

    def served_by(self, home: int) -> list[int]:
        """The nodes whose CPUs work for a node's memory: itself, and those without that it is nearest to."""
        homes = self.working_nodes()
        return [
            number
            for number, node in enumerate(self.nodes)
            if node.cpus and home == (number if node.mib else min(homes, key=lambda h: (abs(h - number), h)))
        ]


MACHINES = (
    Machine("1 node", (Node(2, 640),), ("doctor", *LOADS)),
    Machine("2 nodes", (Node(4, 512),) * 2, (*ALWAYS, "bind:node"), threads_per_core=2),
    Machine("4 nodes", (Node(2, 320),) * 4, (*ALWAYS, *CONTAINERS, "restart:map", "foreign:map")),
    Machine("8 nodes", (Node(2, 256),) * 8, ALWAYS),
    Machine("uneven nodes", (Node(1, 256), Node(2, 512), Node(3, 1024)), (*ALWAYS, *SHORT)),
    Machine("a node without memory", (Node(2, 512), Node(2, 0), Node(2, 512)), ALWAYS),
    Machine("a node without CPUs", (Node(2, 512), Node(2, 512), Node(0, 512)), ALWAYS),
)


def command(machine: Machine, kernel: Path, image: Path, report: Path) -> list[str]:
    """QEMU's command line. The console is on standard output; the disk is not written to."""
    cpus = sum(node.cpus for node in machine.nodes)
    cores = cpus // machine.threads_per_core
    arguments = [
        "qemu-system-x86_64",
        # Linux asks only processors that name this maker for hyperthreads in the way QEMU answers. Without a
        # fifth level of page tables a kernel does not switch paging off and on again while it starts, which
        # nothing here needs and emulators get wrong.
        *("-accel", "tcg,thread=multi", "-cpu", "max,vendor=GenuineIntel,la57=off"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-m", f"{sum(node.mib for node in machine.nodes)}M"),
        *("-smp", f"{cpus},sockets={cores},cores=1,threads={machine.threads_per_core}"),
        *("-kernel", str(kernel), "-append", _kernel_arguments(machine)),
        *("-drive", f"file={image},format=raw,if=none,id=disk,snapshot=on"),
        *("-device", "nvme,drive=disk,serial=disk"),
        *("-serial", "stdio", "-serial", f"file:{report}"),
        # What the firmware says: of a machine that stops before its kernel there is nothing else.
        *("-debugcon", f"file:{report.with_suffix('.firmware')}", "-global", "isa-debugcon.iobase=0x402"),
    ]
    for number, node in enumerate(machine.nodes):
        what = f"node,nodeid={number}"
        if node.mib:
            arguments += ["-object", f"memory-backend-ram,id=memory{number},size={node.mib}M"]
            what += f",memdev=memory{number}"
        if node.cpus:
            what += f",cpus={machine.cpus_of(number)[0]}-{machine.cpus_of(number)[-1]}"
        arguments += ["-numa", what]
    # The nearer the number, the nearer the node.
    for one in range(len(machine.nodes)):
        for other in range(one + 1, len(machine.nodes)):
            arguments += ["-numa", f"dist,src={one},dst={other},val={16 + 4 * (other - one)}"]
    return arguments


def _kernel_arguments(machine: Machine) -> str:
    environment = {"PYTHONPATH": SITE, "PATH": "/usr/bin", "OPENBLAS_NUM_THREADS": "1"}
    return " ".join(
        [
            # From its first moment the kernel says where it is, so one that stops is no riddle.
            "earlyprintk=ttyS0 console=ttyS0",
            # A busy host looks like a broken timer or a drifting clock. Without that clock, workers read the
            # time from an emulated device, one after the other.
            "no_timer_check tsc=reliable",
            "panic=-1 root=/dev/nvme0n1 ro",
            f"init={INTERPRETER}",
            # What the kernel does not know becomes the environment of the first process.
            *(f"{name}={value}" for name, value in environment.items()),
            f"-- {GUEST}/guest.py",
            *machine.scenarios,
        ]
    )
