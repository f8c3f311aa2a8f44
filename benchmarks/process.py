"""A command as a whole: how long it took, of how many CPUs, and how much memory."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Used(NamedTuple):
    """What one run of a command took."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def run(command: Sequence[str | Path]) -> Used:
    """Run it. Raises RuntimeError with its last words if it fails."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        words = " ".join(output.decode(errors="replace")[-500:].split())
        msg = f"{' '.join(map(str, command))}: exit code {process.returncode}: {words}"
        raise RuntimeError(msg)
    return Used(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
