"""The roofline plot: every cell under what memory and arithmetic allow for its operations per byte."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lsg import LsgError

_MARKERS: Final = "osD^vPX*"


def save(result: dict[str, Any], path: Path) -> None:
    """Draw a result of report.as_json into a PNG. Raises LsgError without matplotlib or without cells."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "--plot needs matplotlib; install it with: pip install 'lsg[plot]'"
        raise LsgError(msg) from error
    cells = result["cells"]
    if not cells:
        msg = "nothing to plot: no cell was measured"
        raise LsgError(msg)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(_operations_per_byte(cell), cell["operations_per_s"] / 1e9) for cell in cells]
    left, right = min(x for x, _ in points) / 1.5, 1.5 * max(x for x, _ in points)
    memory = statistics.median(cell["memory_bytes_per_s"] for cell in cells) / 1e9
    peaks: dict[str, float] = {
        name: statistics.median(
            cell["peak_operations_per_s"] / 1e9 for cell in cells if cell["instruction"] == name
        )
        for name in {cell["instruction"] for cell in cells}
    }
    roof = max(peaks.values())
    axes.plot([left, roof / memory], [left * memory, roof], color="black", linewidth=1)
    axes.annotate(
        f"memory, {memory:.0f} GB/s", (left, left * memory), rotation=0, va="bottom", ha="left", fontsize=8
    )
    for name, peak in peaks.items():
        axes.plot([peak / memory, right], [peak, peak], color="black", linewidth=1)
        axes.annotate(f"{name}, {peak:.0f} GOP/s", (right, peak), va="bottom", ha="right", fontsize=8)
    shapes = _in_order(cell["shape"] for cell in cells)
    for index, format in enumerate(_in_order(cell["format"] for cell in cells)):
        for marker, shape in zip(_MARKERS, shapes, strict=False):
            chosen = [
                point
                for cell, point in zip(cells, points, strict=True)
                if cell["format"] == format and cell["shape"] == shape
            ]
            if chosen:
                axes.plot(
                    *zip(*chosen, strict=True),
                    marker=marker,
                    markersize=4,
                    linewidth=0.7,
                    color=f"C{index}",
                    label=f"{format}, {shape}",
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_xlabel("operations per byte of experts read")
    axes.set_ylabel("GOP/s")
    facts = result["machine"]
    axes.set_title(f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}", fontsize=9)
    axes.legend(fontsize=6, ncols=2, loc="lower right")
    figure.savefig(path, format="png", dpi=110)


def _operations_per_byte(cell: dict[str, Any]) -> float:
    rate: float = cell["operations_per_s"] / cell["bytes_per_s"]["median"]
    return rate


def _in_order(names: Sequence[str] | Any) -> list[str]:
    return list(dict.fromkeys(names))
