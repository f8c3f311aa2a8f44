"""What lsg-serve prints: one style for facts, notes and errors, on stderr, coloured on a terminal only.

Invariant: the only importer of rich in this room; stdout stays free for what a command was asked for.
"""

import traceback

from rich.console import Console
from rich.markup import escape
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


def note(message: str) -> None:
    """One line about what is being done."""
    _stderr.print(f"[bold]lsg-serve[/bold] {escape(message)}")


def facts(rows: list[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _stderr.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value))


def error(message: object, *, with_traceback: bool) -> None:
    """One red line; the traceback of the exception being handled before it when asked for."""
    if with_traceback:
        _stderr.print(Text(traceback.format_exc()))
    _stderr.print(Text(f"lsg-serve: {message}", style="red"))
