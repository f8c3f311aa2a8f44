"""Markdown of a table: what was measured, then the rows."""

from typing import Any


def table(what: str, head: list[str], rows: list[list[str]]) -> str:
    """A paragraph and a table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join([what, "", *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def section(
    machine: dict[str, Any],
    what: str,
    head: list[str],
    rows: list[list[str]],
    spread: str = "Median (lowest … highest).",
) -> str:
    """A table of figures from the machine."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    measured_on = (
        f"{machine['cpu']}, {machine['logical_cpus']} CPUs, {threads}, {machine['isa']}, "
        f"{machine['compiler']}, governor: {machine['governor']}, THP: {machine['transparent_hugepages']}, "
        f"commit {machine['commit']}."
    )
    return table(f"{measured_on} {what} {spread}".rstrip(), head, rows)


def rate(value: dict[str, float], digits: int = 2) -> str:
    """Bytes a second as GB/s."""
    median, low, high = (f"{value[key] / 1e9:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low} … {high})"


def percent(value: float, limit: float) -> str:
    """How much of the limit it is."""
    return f"{100 * value / limit:.0f} %"
