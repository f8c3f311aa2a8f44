"""Switches an emulated machine on and watches it, so that nothing it does or omits takes for ever.

Invariant: QEMU has ended when `boot` returns. A machine that stands still before its first process is started
a second time: nothing of ours had run in it.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.2
# For the emulator, to end when it is asked.
TERMINATE_S = 5.0


@dataclass(frozen=True)
class Limits:
    """Seconds. first_line: until the kernel's first; start: until guest.py runs; scenario: for each.

    scenario is more than guest.py gives it, which knows better what happened: only a guest that stands still
    as a whole gets here. power_off: after the last scenario.
    """

    first_line: float = 40
    start: float = 90
    scenario: float = 180
    power_off: float = 30


@dataclass
class Boot:
    """What came of it. ended: why there are no more reports, empty when the machine switched itself off.

    hiccups: starts in which the machine stood still before its first process.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""
    hiccups: int = 0


class _NeverStartedError(Exception):
    """The first process did not run, and not because the emulator ended."""


def boot(
    command: Sequence[str], console: Path, report: Path, scenarios: int, limits: Limits, deadline: float
) -> Boot:
    """Run `command`, whose output goes to `console` and whose guest writes to `report`.

    scenarios: how many lines it will write after its first, which says that guest.py runs. deadline: on
    time.monotonic()'s clock, for all of it.
    """
    for hiccups in (0, 1):
        try:
            return Boot(*_once(command, console, report, scenarios, limits, deadline), hiccups)
        except _NeverStartedError as hiccup:
            said = str(hiccup)
    return Boot([], said, 2)


def _once(
    command: Sequence[str], console: Path, report: Path, scenarios: int, limits: Limits, deadline: float
) -> tuple[list[dict[str, Any]], str]:
    """The reports, and why there are no more."""
    report.write_text("")
    with console.open("wb") as output:
        emulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            ended = _watch(emulator, console, report, scenarios, limits, deadline)
        finally:
            _end(emulator)
    return _read(report)[1], ended


def _watch(
    emulator: subprocess.Popen[bytes],
    console: Path,
    report: Path,
    scenarios: int,
    limits: Limits,
    deadline: float,
) -> str:
    """Wait until the emulator ends or a limit is reached; why it was, if not by itself.

    Raises _NeverStartedError for the limits before the first process.
    """
    step, since = -2, time.monotonic()
    while (code := emulator.poll()) is None:
        now = time.monotonic()
        started, reports = _read(report)
        reached = len(reports) if started else -1 if console.stat().st_size else -2
        if reached != step:
            step, since = reached, now
        what, limit = _phase(step, scenarios, limits)
        if now - since > limit:
            ended = f"{what} after {limit:g} s; the machine was switched off"
            if step < 0:
                raise _NeverStartedError(ended)
            return ended
        if now > deadline:
            return f"{what} when the time for all machines was over; the machine was switched off"
        time.sleep(POLL_S)
    return "" if code == 0 else f"the emulator ended with exit code {code}"


def _phase(step: int, scenarios: int, limits: Limits) -> tuple[str, float]:
    """What a machine has not done yet, and how long that may take."""
    if step == -2:
        return "no line on the console", limits.first_line
    if step == -1:
        return "the first process did not run", limits.start
    if step < scenarios:
        return "no report", limits.scenario
    return "not switched off by itself", limits.power_off


def _read(report: Path) -> tuple[bool, list[dict[str, Any]]]:
    """Whether guest.py runs, and its reports; a line that is not finished yet does not count."""
    lines = report.read_text().split("\n")[:-1]
    return bool(lines), [json.loads(line) for line in lines[1:]]


def _end(emulator: subprocess.Popen[bytes]) -> None:
    if emulator.poll() is None:
        emulator.terminate()
        try:
            emulator.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            emulator.kill()
    emulator.wait()
