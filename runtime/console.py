"""What the commands of this room print: one style, coloured on a terminal only; notes and errors on stderr.

Invariant: the only importer of rich in this room; stdout stays free for what a command was asked for.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

# Between two lines about a load, where there is no terminal; a program wants to know more often.
LINE_SECONDS: Final = 5.0
JSON_SECONDS: Final = 0.5

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def size(count: int) -> str:
    """Bytes in words: the largest decimal unit that leaves a digit before the point."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.4g} {unit}"


def note(message: str, *, command: str = "lsg-serve") -> None:
    """One line about what is being done."""
    _stderr.print(f"[bold]{command}[/bold] {escape(message)}")


def warn(message: str) -> None:
    """One line about what will probably go wrong."""
    _stderr.print(Text(f"lsg-serve: {message}", style="yellow"))


def event(name: str, **fields: Any) -> None:
    """A JSON line on stdout, for programs."""
    # Written at once, so that lines of several processes stay whole.
    sys.stdout.write(json.dumps({"event": name, **fields}) + "\n")
    sys.stdout.flush()


def facts(rows: list[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _stderr.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value))


def table(head: list[str], rows: list[list[str]]) -> None:
    """A table on stdout: what was asked for. The first two columns are words, the others numbers."""
    # Away from a terminal nothing folds a row.
    stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(head):
        found.add_column(escape(name), justify="left" if column < 2 else "right", no_wrap=True)
    for row in rows:
        found.add_row(*map(escape, row))
    stdout.print(found)


class LoadProgress:
    """How far experts are on their way into memory: a bar for each node on a terminal, else lines.

    Called with (node, bytes done, bytes in all) of each node. json_process: JSON lines instead, with this
    number of the process.
    """

    def __init__(
        self, say: Callable[[str], None], *, bars: bool = True, json_process: int | None = None
    ) -> None:
        self._say = say
        self._said = self._began = time.monotonic()
        self._json_process = json_process
        self._bars = None
        if bars and json_process is None and _stderr.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=_stderr,
                transient=True,
            )
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> "LoadProgress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, nodes: list[tuple[int, int, int]]) -> None:
        """Show it."""
        if self._bars:
            for node, done, total in nodes:
                if node not in self._tasks:
                    self._tasks[node] = self._bars.add_task(_node_name(node), total=total)
                self._bars.update(self._tasks[node], completed=done)
            return
        now = time.monotonic()
        complete = all(done == total for _, done, total in nodes)
        if self._json_process is not None:
            if complete or now - self._said >= JSON_SECONDS:
                self._said = now
                event(
                    "load",
                    process=self._json_process,
                    seconds=round(now - self._began, 3),
                    nodes=[
                        {"node": node, "done_bytes": done, "total_bytes": total}
                        for node, done, total in nodes
                    ],
                )
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            self._say("loading: " + "; ".join(self._line(now, *node) for node in nodes))

    def _line(self, now: float, node: int, done: int, total: int) -> str:
        rate = done / (now - self._began)
        left = f"{(total - done) / rate:.0f} s left" if rate else "waiting"
        return f"{_node_name(node)} {size(done)} of {size(total)}, {size(int(rate))}/s, {left}"


def _node_name(node: int) -> str:
    return "experts" if node < 0 else f"node {node}"


def finding(level: str, topic: str, found: str, why: str, action: str) -> None:
    """What was found, on stdout; for advice also why it matters and what to do."""
    stdout = Console(highlight=False, soft_wrap=True)
    colour = {"good": "green", "advice": "yellow"}.get(level, "dim")
    stdout.print(Text.assemble((f"{level:<7}", colour), (f"{topic}: ", "bold"), found))
    for name, text in (("why", why), ("do", action)):
        if text:
            stdout.print(Text.assemble((f"{'':7}{name + ':':<5}", "dim"), text))


def error(message: object, *, with_traceback: bool, command: str = "lsg-serve") -> None:
    """One red line; the traceback of the exception being handled before it when asked for."""
    if with_traceback:
        _stderr.print(Text(traceback.format_exc()))
    _stderr.print(Text(f"{command}: {message}", style="red"))
