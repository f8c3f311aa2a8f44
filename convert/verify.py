"""Checks that a repacked directory is what its manifest, and its checkpoint, say.

Invariant: bytes are compared with checksums, numbers with numbers. Against a checkpoint, an expert that was
stored without loss must decode to exactly the checkpoint's values; one that was not is decoded in float64 and
its error measured anew, without the code that chose the scales.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError, FormatError, manifest
from lsg._core import LayerFile, LayerSpec, unpack_expert
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.console import Progress
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources import Expert, ExpertLayer, Source, find_experts
from lsg.convert.values import decode

# Rows decoded at a time, in float64: a multiple of every scale_rows, small enough for the caches.
_ROWS: Final = 32
# The manifest's error was summed in another order, from the same numbers.
_ERROR_SLACK: Final = 1e-6

Sums = tuple[float, float]
"""Squared error and squared norm."""


@dataclass(frozen=True)
class Verified:
    """What was found to be right; seconds: for the checksums."""

    layers: int
    slabs: int
    nbytes: int
    seconds: float
    compared: bool


def verify(model: Path, against: Path | None, threads: int, progress: Progress) -> Verified:
    """Raises FormatError for the first thing that is wrong with `model`, CheckpointError for `against`."""
    catalogue = manifest.load(model)
    files = [_open_layer(model, entry) for entry in catalogue.layers]
    slabs = sum(entry.num_experts for entry in catalogue.layers)
    nbytes = sum(entry.file_bytes for entry in catalogue.layers)
    progress.begin(nbytes, 0, "verifying")
    began = time.monotonic()
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        for entry, file in zip(catalogue.layers, files, strict=True):
            _check_sums(model, entry, file, pool.map)
            progress.advance(entry.file_bytes)
        seconds = time.monotonic() - began
        if against is not None:
            with Checkpoint(against) as checkpoint:
                _compare(catalogue, files, checkpoint, model, pool, progress)
    return Verified(len(files), slabs, nbytes, seconds, against is not None)


def _open_layer(model: Path, entry: manifest.Layer) -> LayerFile:
    path = model / manifest.DIRECTORY / entry.file
    if not path.exists():
        msg = f"{path}: missing; convert the model again"
        raise FormatError(msg)
    file = LayerFile(str(path))
    entry.check_spec(file.spec, path)
    if file.header_crc32c != entry.header_crc32c:
        msg = f"{path}: not the file that the manifest lists (header checksum); convert the model again"
        raise FormatError(msg)
    return file


def _check_sums(
    model: Path, entry: manifest.Layer, file: LayerFile, map_: Callable[..., Iterator[int]]
) -> None:
    path = model / manifest.DIRECTORY / entry.file
    for expert, found in enumerate(map_(file.slab_crc32c, range(entry.num_experts))):
        if found != entry.slab_crc32c[expert]:
            msg = (
                f"{path}: expert {expert} of layer {entry.index} has checksum {found:08x}, the manifest says "
                f"{entry.slab_crc32c[expert]:08x}; the file is damaged, convert the model again"
            )
            raise FormatError(msg)
    if file.table_crc32c() != entry.table_crc32c:
        msg = f"{path}: the expert table of layer {entry.index} is damaged; convert the model again"
        raise FormatError(msg)


def _compare(
    catalogue: manifest.Manifest,
    files: list[LayerFile],
    checkpoint: Checkpoint,
    model: Path,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    where = str(checkpoint.directory / "config.json")
    source = find_experts(checkpoint, MoeGeometry.from_config(checkpoint.config, where))
    if [layer.index for layer in source.layers] != [entry.index for entry in catalogue.layers]:
        msg = (
            f"{checkpoint.directory}: has experts in other layers than {model}; "
            "it is not the checkpoint that this was made from"
        )
        raise CheckpointError(msg)
    total = sum(layer.num_experts * layer.expert_bytes for layer in source.layers)
    progress.begin(total, 0, "comparing")
    for entry, file, layer in zip(catalogue.layers, files, source.layers, strict=True):
        _compare_layer(entry, file, source, layer, pool, progress)


def _compare_layer(
    entry: manifest.Layer,
    file: LayerFile,
    source: Source,
    layer: ExpertLayer,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    spec = file.spec
    mine = (spec.num_experts, spec.hidden_size, spec.intermediate_size, spec.gated)
    if mine != (layer.num_experts, layer.hidden_size, layer.intermediate_size, layer.gated):
        msg = (
            f"layer {entry.index}: the checkpoint has other experts ({layer.num_experts} of "
            f"[{layer.intermediate_size}, {layer.hidden_size}]) than the layer file "
            f"({spec.num_experts} of [{spec.intermediate_size}, {spec.hidden_size}])"
        )
        raise CheckpointError(msg)
    if entry.activation != layer.activation:
        msg = (
            f"layer {entry.index}: the checkpoint's experts compute {layer.activation}, the manifest says "
            f"{entry.activation}; is it the checkpoint that this was made from?"
        )
        raise CheckpointError(msg)
    table = file.table()
    exact = entry.error is None

    def measure(expert: int) -> list[Sums | None]:
        stored = Expert(*unpack_expert(spec, file.expert(expert), table, expert))
        return _measure_expert(stored, source.read(layer, expert), spec, layer, expert, exact=exact)

    sums: list[list[Sums]] = [[], [], []]
    for found in pool.map(measure, range(layer.num_experts)):
        for projection, pair in enumerate(found):
            if pair is not None:
                sums[projection].append(pair)
        progress.advance(layer.expert_bytes)
    if entry.error is not None:
        said = (entry.error.gate, entry.error.up, entry.error.down)
        for name, pairs, bound in zip(("gate", "up", "down"), sums, said, strict=True):
            _check_error(entry.index, name, pairs, bound)


def _measure_expert(
    stored: Expert, original: Expert, spec: LayerSpec, layer: ExpertLayer, expert: int, *, exact: bool
) -> list[Sums | None]:
    result: list[Sums | None] = []
    for name, mine, theirs in zip(("gate", "up", "down"), stored, original, strict=True):
        if mine is None or theirs is None:
            result.append(None)
            continue
        panels = (spec.down, layer.down) if name == "down" else (spec.gate_up, layer.gate_up)
        error = norm = 0.0
        for row in range(0, mine.codes.shape[0], _ROWS):
            rows = slice(row, min(row + _ROWS, mine.codes.shape[0]))
            value = decode(theirs, panels[1], rows)
            differs = decode(mine, panels[0], rows) - value
            if exact and differs.any():
                _refuse_weight(spec, layer, expert, name, row, differs)
            error += float(np.square(differs).sum())
            norm += float(np.square(value).sum())
        for what in ("bias", "input_order"):
            if not _same(getattr(mine, what), getattr(theirs, what)):
                words = what.replace("_", " ")
                where = f"layer {spec.layer_index}, expert {expert}"
                msg = f"{where}: {name}_proj has another {words} than the checkpoint"
                raise FormatError(msg)
        result.append((error, norm))
    return result


def _refuse_weight(
    spec: LayerSpec, layer: ExpertLayer, expert: int, name: str, row: int, differs: npt.NDArray[np.float64]
) -> None:
    row_in, column = (int(index[0]) for index in np.nonzero(differs))
    # A unit is some rows of gate and up, and the matching columns of down.
    unit = (column if name == "down" else row + row_in) // spec.unit_rows
    msg = (
        f"layer {spec.layer_index}, expert {expert}, unit {unit}: weight [{row + row_in}, {column}] of "
        f"{layer.prefix}.{expert}.{name}_proj differs from the checkpoint; convert the model again"
    )
    raise FormatError(msg)


def _same(mine: npt.NDArray[np.generic] | None, theirs: npt.NDArray[np.generic] | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return bool(np.array_equal(mine, theirs))


def _check_error(layer: int, name: str, pairs: list[Sums], said: float | None) -> None:
    norm = math.fsum(norm for _, norm in pairs)
    found = math.fsum(error for error, _ in pairs) / norm if norm else 0.0
    if pairs and found > (said or 0.0) * (1 + _ERROR_SLACK) + 1e-30:
        msg = (
            f"layer {layer}: {name}_proj has a relative squared error of {found:.3e} against the checkpoint, "
            f"the manifest says {said or 0.0:.3e}; is it the checkpoint that this was made from?"
        )
        raise FormatError(msg)
