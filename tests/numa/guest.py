"""The first process of an emulated machine: runs the scenarios on its command line, reports, powers off.

Invariant: the second serial port gets a line of JSON when this process runs, and one for every scenario, also
when it fails. A scenario is a process of its own and finds an empty page cache.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

MOUNTS = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/dev": "devtmpfs",
    "/tmp": "tmpfs",
    "/sys/fs/cgroup": "cgroup2",
}
REPORT = Path("/dev/ttyS1")
# Of one scenario; the host (boot.py) waits a little longer before it gives the whole machine up.
TIMEOUT_S = 150
POWER_OFF = 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def main(scenarios: list[str]) -> None:
    for target, kind in MOUNTS.items():
        if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), f"mount {target}")
    # For the scenario that plays a container.
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpuset")
    # Line by line, because the host watches.
    with REPORT.open("w", buffering=1) as report:
        report.write(json.dumps({"uptime_s": time.monotonic()}) + "\n")
        for scenario in scenarios:
            Path("/proc/sys/vm/drop_caches").write_text("3")
            report.write(json.dumps({"scenario": scenario} | run(scenario)) + "\n")


def run(scenario: str) -> dict[str, object]:
    """What the scenario printed, and how long it took."""
    command = [sys.executable, "/guest/scenarios.py", scenario]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {TIMEOUT_S} s", "seconds": TIMEOUT_S}
    seconds = round(time.monotonic() - start, 2)
    sys.stdout.write(done.stderr)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        return {"error": f"exit code {done.returncode}: {reason}", "seconds": seconds}
    return json.loads(done.stdout) | {"seconds": seconds}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception:
        traceback.print_exc()
    # A first process that ends would be a kernel panic.
    os.sync()
    libc.reboot(POWER_OFF)
