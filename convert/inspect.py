"""What is in a repacked directory: geometry, formats, sizes, the errors of the conversion.

Invariant: everything is read from the manifest and the files' headers; no weight is touched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from lsg import FormatError, LsgError, manifest
from lsg._core import LayerFile, LayerSpec
from lsg.manifest import Layer, Manifest, Panel

NODE_COUNTS: Final = (1, 2, 4, 8)
_BAR: Final = 48


@dataclass(frozen=True)
class Kind:
    """Layers that have everything but their contents in common."""

    layers: tuple[int, ...]
    num_experts: int
    hidden_size: int
    intermediate_size: int
    unit_rows: int
    num_units: int
    gated: bool
    activation: str
    gate_up: str
    down: str
    layer_bytes: int


@dataclass(frozen=True)
class Report:
    """`node_bytes`: for each number of NUMA nodes, what the nodes hold, the fullest first."""

    catalogue: Manifest
    kinds: tuple[Kind, ...]
    total_bytes: int
    node_bytes: dict[int, list[int]]

    def as_json(self) -> dict[str, Any]:
        """The report in plain types."""
        catalogue = self.catalogue
        return {
            "source": msgspec.to_builtins(catalogue.source),
            "created_by": catalogue.created_by,
            "options": catalogue.options,
            "architecture": catalogue.architecture,
            "model_type": catalogue.model_type,
            "top_k": catalogue.top_k,
            "kinds": [msgspec.to_builtins(kind) for kind in self.kinds],
            "total_bytes": self.total_bytes,
            "node_bytes": {str(nodes): sizes for nodes, sizes in self.node_bytes.items()},
            "error": {
                str(layer.index): None if layer.error is None else msgspec.to_builtins(layer.error)
                for layer in catalogue.layers
            },
        }


def inspect(model: Path) -> Report:
    """Read the manifest. Raises FormatError."""
    catalogue = manifest.load(model)
    specs = [_spec(model, layer) for layer in catalogue.layers]
    return Report(
        catalogue=catalogue,
        kinds=tuple(_kinds(catalogue.layers)),
        total_bytes=sum(layer.file_bytes for layer in catalogue.layers),
        node_bytes={
            nodes: [sum(sizes) for sizes in zip(*(_split(spec, nodes) for spec in specs), strict=True)]
            for nodes in NODE_COUNTS
        },
    )


def lines(report: Report) -> list[str]:
    """The report in words, for a terminal."""
    catalogue = report.catalogue
    source = catalogue.source
    revision = f" at {source.revision}" if source.revision else ""
    options = " ".join(f"{name}={value}" for name, value in sorted(catalogue.options.items()))
    found = [
        f"source      {source.model}{revision}, experts in {source.format}",
        f"made by     {catalogue.created_by}, {options}",
        f"model       {catalogue.architecture} ({catalogue.model_type}), top_k {catalogue.top_k}",
    ]
    for kind in report.kinds:
        found += [
            f"layers      {_ranges(kind.layers)}: {kind.num_experts} experts, hidden {kind.hidden_size}, "
            f"intermediate {kind.intermediate_size}, {kind.num_units} units of {kind.unit_rows}",
            f"  neuron    {kind.activation}",
            f"  gate_up   {kind.gate_up}{'' if kind.gated else ' (no gate)'}",
            f"  down      {kind.down}",
            f"  size      {_gib(kind.layer_bytes)} a layer",
        ]
    found.append(f"experts     {_gib(report.total_bytes)} in {len(catalogue.layers)} layers")
    for nodes, sizes in report.node_bytes.items():
        least = "" if min(sizes) == max(sizes) else f", {_gib(min(sizes))} on the emptiest"
        found.append(f"  {nodes} node{'s' if nodes > 1 else ' '}   {_gib(max(sizes))} a node{least}")
    return found + _error_plot(catalogue.layers)


def save_plot(report: Report, path: Path) -> None:
    """Draw each layer's errors into a PNG. Raises LsgError without matplotlib or without errors."""
    layers = [layer for layer in report.catalogue.layers if layer.error is not None]
    if not layers:
        msg = "nothing to plot: every layer is stored without loss"
        raise LsgError(msg)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "--plot needs matplotlib; install it with: pip install 'lsg[plot]'"
        raise LsgError(msg) from error
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in ("gate", "up", "down"):
        values = [getattr(layer.error, name) for layer in layers]
        if None not in values:
            axes.plot([layer.index for layer in layers], values, marker=".", label=f"{name}_proj")
    axes.set_xlabel("layer")
    axes.set_ylabel("relative squared error")
    axes.set_ylim(0, 1.1 * max(axes.get_ylim()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"{report.catalogue.source.model} as {report.catalogue.options['experts']}")
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def _kinds(layers: Sequence[Layer]) -> Iterable[Kind]:
    def facts(layer: Layer) -> tuple[Any, ...]:
        return (
            layer.num_experts,
            layer.hidden_size,
            layer.intermediate_size,
            layer.unit_rows,
            _num_units(layer),
            layer.gated,
            str(layer.activation),
            _words(layer.gate_up),
            _words(layer.down),
            layer.file_bytes,
        )

    for shared, group in groupby(sorted(layers, key=lambda layer: (facts(layer), layer.index)), key=facts):
        yield Kind(tuple(layer.index for layer in group), *shared)


def _num_units(layer: Layer) -> int:
    return -(-layer.intermediate_size // layer.unit_rows)


def _spec(model: Path, layer: Layer) -> LayerSpec:
    path = model / manifest.DIRECTORY / layer.file
    if not path.exists():
        msg = f"{path}: missing; convert the model again"
        raise FormatError(msg)
    spec = LayerFile(str(path)).spec
    layer.check_spec(spec, path)
    return spec


def _split(spec: LayerSpec, nodes: int) -> list[int]:
    """Bytes of each node's contiguous range of units; the first nodes take one more if it does not divide."""
    base, more = divmod(spec.num_units, nodes)
    return [spec.unit_bytes * (base + (node < more)) for node in range(nodes)]


def _words(panel: Panel) -> str:
    words = [panel.dtype]
    if panel.scale_dtype != "none":
        along = f"every {panel.scale_k} inputs" if panel.scale_k else "a row"
        rows = f" of {panel.scale_rows} rows" if panel.scale_rows > 1 else ""
        words.append(f"{panel.scale_dtype} scale for {along}{rows}")
    words += [
        word
        for word, there in (
            ("zero point", panel.zero_point),
            ("bias", panel.bias),
            ("global scale", panel.global_scale),
            ("inputs in an order of each expert's own", panel.k_permutation),
        )
        if there
    ]
    return ", ".join(words)


def _error_plot(layers: Sequence[Layer]) -> list[str]:
    """A bar for each layer's largest error; layers without one are stored without loss."""
    worst = {
        layer.index: max(layer.error.gate or 0.0, layer.error.up, layer.error.down)
        for layer in layers
        if layer.error is not None
    }
    if not worst:
        return ["error       none: every weight is the checkpoint's own"]
    largest = max(worst.values()) or 1.0
    kept = [layer.index for layer in layers if layer.index not in worst]
    return [
        "error       relative squared error of the worst projection, by layer",
        *(
            f"  {index:5d}   {value:.2e} {'█' * round(_BAR * value / largest)}"
            for index, value in worst.items()
        ),
        *([f"  layers {_ranges(kept)} are stored without loss"] if kept else []),
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """3, 5-9."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.3f} GiB"
