"""Results of a sweep: as JSON, as rows of a table, and as one small table at the end.

Invariant: everything printed or plotted comes from the JSON, so a saved result can be shown again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

from lsg.runtime.bench import machine
from lsg.runtime.bench.sweep import MEMORY, Group, Options

HEAD: Final = [
    "shape",
    "format",
    "experts",
    "tokens",
    "ms",
    "GB/s",
    "% of memory",
    "GOP/s",
    "% of peak",
    "instruction",
    "bound by",
]


def as_json(options: Options, groups: Sequence[Group]) -> dict[str, Any]:
    """Machine, options, limits by group, cells; rates in units of one per second, to six digits."""
    result = {
        "machine": machine.describe(options.placement.threads),
        "isa": options.isa or "highest",
        "activations": options.activations,
        "load": options.load,
        "working_set_bytes": options.working_set,
        "seconds_per_cell": options.seconds,
        "limits": [
            {
                "shape": group.cells[0].shape,
                "format": group.cells[0].format,
                "bytes_per_s": group.limits.bytes_per_s,
                "operations_per_s": {found.name: rate for found, rate in group.limits.peaks.items()},
            }
            for group in groups
            if group.cells
        ],
        "cells": [asdict(cell) for group in groups for cell in group.cells],
    }
    rounded: dict[str, Any] = _rounded(result)
    return rounded


def rows(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row a cell, under HEAD."""
    return [
        [
            f"{cell['shape']} ({cell['model']})",
            cell["format"],
            str(cell["num_experts"]),
            str(cell["batch"]),
            _ms(cell),
            f"{cell['bytes_per_s']['median'] / 1e9:.1f}",
            f"{cell['percent_of_memory']:.0f}",
            f"{cell['operations_per_s'] / 1e9:.0f}",
            f"{cell['percent_of_arithmetic']:.0f}",
            cell["instruction"],
            cell["bound"],
        ]
        for cell in cells
    ]


def summary(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row a shape and format, one column a batch, each the percentage of what binds."""
    batches = sorted({cell["batch"] for cell in cells})
    found = []
    for (shape, format), group in groupby(cells, key=lambda cell: (cell["shape"], cell["format"])):
        by_batch = {cell["batch"]: cell for cell in group}
        found.append([shape, format, *(_percent(by_batch.get(batch)) for batch in batches)])
    return ["shape", "format", *(f"{batch}" for batch in batches)], found


def _percent(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["bound"] == MEMORY:
        return f"{cell['percent_of_memory']:.0f} % mem"
    return f"{cell['percent_of_arithmetic']:.0f} % ops"


def _ms(cell: dict[str, Any]) -> str:
    ms = 1e3 * cell["seconds"]["median"]
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
