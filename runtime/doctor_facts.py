"""What lsg doctor judges: a machine as the kernel and the core report it.

Invariant: only observed; what is not shown is None, empty or zero.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lsg.runtime import host as hosts
from lsg.runtime.host import Host
from lsg.runtime.topology import kibibytes, parse_list, read


@dataclass(frozen=True)
class Facts:
    """What is judged; None or empty: not shown here."""

    host: Host
    cpu: str
    isa: str
    virtual: bool
    sockets: int
    online_cpus: int
    memory_bytes: int
    huge_pages: str = ""
    governors: tuple[str, ...] = ()
    reserved_huge_bytes: int = 0
    swap_bytes: int = 0
    numa_balancing: bool = False


def observe(isa: str, root: Path = Path("/"), allowed: set[int] | None = None) -> Facts:
    """Look at this machine; `root` and `allowed` are for tests."""
    cpuinfo = read(root / "proc/cpuinfo") or ""
    meminfo = read(root / "proc/meminfo") or ""
    cpus = root / "sys/devices/system/cpu"
    online = parse_list(read(cpus / "online") or "")
    packages = {read(cpus / f"cpu{cpu}/topology/physical_package_id") for cpu in online}
    governors = {read(cpus / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in online} - {None}
    setting = read(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return Facts(
        host=hosts.observe(root, allowed),
        cpu=model[1] if model else "unknown processor",
        isa=isa,
        virtual=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, flags=re.MULTILINE)),
        sockets=max(1, len(packages - {None})),
        online_cpus=len(online),
        memory_bytes=kibibytes(meminfo, "MemTotal"),
        huge_pages=setting.partition("[")[2].partition("]")[0],
        governors=tuple(sorted(str(governor) for governor in governors)),
        reserved_huge_bytes=kibibytes(meminfo, "Hugepagesize") * _count(meminfo, "HugePages_Free"),
        swap_bytes=kibibytes(meminfo, "SwapTotal"),
        numa_balancing=(read(root / "proc/sys/kernel/numa_balancing") or "0") != "0",
    )


def _count(meminfo: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)$", meminfo, flags=re.MULTILINE)
    return int(found[1]) if found else 0
