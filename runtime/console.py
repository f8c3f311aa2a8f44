"""What the commands of this room print: one style, coloured on a terminal only; notes and errors on stderr.

Invariant: the only importer of rich in this room; stdout stays free for what a command was asked for.
"""

import sys
import traceback

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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


def error(message: object, *, with_traceback: bool, command: str = "lsg-serve") -> None:
    """One red line; the traceback of the exception being handled before it when asked for."""
    if with_traceback:
        _stderr.print(Text(traceback.format_exc()))
    _stderr.print(Text(f"{command}: {message}", style="red"))
