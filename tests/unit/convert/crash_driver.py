"""Runs lsg-convert and stops it at the n-th call that matters. Usage: SRC OUT EXPERTS HOW N

HOW is `kill` (SIGKILL; a write is left half done), `power` (what was not synced is lost as well, except the
journal, which is the worst that a disk may do) or `interrupt` (SIGINT). With N 0, or beyond the
last call, the conversion finishes and standard output says how many there were.
"""

import fcntl
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsg.convert import direct, experts
from lsg.convert.cli import main

_, SOURCE, OUT, EXPERTS, HOW, N = sys.argv
WRITES = ("pwrite", "write")
# Many writes in one call.
ROWS = "write_rows"
SYNCS = ("fdatasync", "fsync")
# Between two syncs it makes no difference when the power fails.
CALLS = (*SYNCS, "rename") if HOW == "power" else (*WRITES, *SYNCS, "posix_fallocate", "rename")

numbers = itertools.count(1)
calls = 0
durable: dict[tuple[int, int], bytes] = {}
lock = threading.Lock()


def key(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def cut_power() -> None:
    for root in (f"{OUT}.partial/model", OUT):
        for path in Path(root).rglob("*"):
            if path.is_file():
                synced = durable.get(key(path.stat()))
                path.write_bytes(bytes(path.stat().st_size) if synced is None else synced)


def stop(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> None:
    if HOW == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        return
    if name in WRITES:
        fd, data, *offset = args
        half = len(data) // 2
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            half -= half % 4096
        real(fd, data[:half], *offset)
    if name == ROWS:
        fd, direct_fd, rows, offset, stride = args
        half, width = len(rows) // 2, rows.shape[1] // 2
        real(fd, direct_fd, rows[:half], offset, stride)
        real(fd, direct_fd, rows[half : half + 1, :width], offset + half * stride, stride)
    if HOW == "power":
        cut_power()
    os.kill(os.getpid(), signal.SIGKILL)


def watch(name: str, module: Any = os) -> None:
    real = getattr(module, name)

    def call(*args: Any) -> Any:
        global calls
        # One call at a time: the durable copies then are what a disk would hold.
        with lock:
            calls = next(numbers)
            if calls == int(N):
                stop(name, args, real)
            result = real(*args)
            if name in SYNCS and os.path.isfile(f"/proc/self/fd/{args[0]}"):  # noqa: PTH113
                durable[key(os.fstat(args[0]))] = Path(f"/proc/self/fd/{args[0]}").read_bytes()
            return result

    setattr(module, name, call)


for name in CALLS:
    watch(name)
if HOW != "power":
    watch(ROWS, direct)
# A shell starts background jobs with SIGINT ignored, and tests run in such jobs too.
signal.signal(signal.SIGINT, signal.default_int_handler)
experts.COMMIT_SECONDS = 0.0
if HOW == "power":
    # One expert after the other: an early sync must not save what a missing one would lose.
    experts._QUEUE = 1
main([SOURCE, OUT, "--experts", EXPERTS, "--threads", "2"], standalone_mode=False)
sys.stdout.write(f"{calls}\n")
