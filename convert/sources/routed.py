"""Reads the routed experts of a checkpoint, one at a time.

Invariant: only the numbers themselves can still be wrong when `read` is called, and they reach the Matrix as
they are. Whoever finds one that is none among them asks `check` for the tensor that it came from.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Matrix
from lsg.convert.checkpoint import Checkpoint, Tensor
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources.base import Expert, ExpertLayer
from lsg.convert.sources.encoding import Array, take_rows
from lsg.convert.sources.layers import BIAS, KnownLayer, KnownMatrix, know_layer
from lsg.convert.sources.names import collect
from lsg.convert.values import is_finite, to_float32, view_of

Order = npt.NDArray[np.uint32] | None


class RoutedExperts:
    """All routed experts of a kind that can be read; whether there are others is for the caller to ask."""

    def __init__(self, checkpoint: Checkpoint, geometry: MoeGeometry) -> None:
        """Find them and check that they are complete. Raises CheckpointError."""
        self._checkpoint = checkpoint
        self._layers: dict[int, KnownLayer] = {}
        hints = quantization_hints(checkpoint.config)
        try:
            for named in collect(checkpoint.tensors.values()):
                layer = know_layer(named, geometry, hints)
                if layer:
                    self._layers[named.index] = layer
        except CheckpointError as error:
            msg = f"{checkpoint.directory}: {error}"
            raise CheckpointError(msg) from error
        self.layers = tuple(layer.described for layer in self._layers.values())
        self.tensor_names = frozenset(
            name for layer in self._layers.values() for name in layer.tensor_names()
        )
        encodings = {matrix.encoding.name for layer in self._layers.values() for matrix in layer.matrices}
        self.format = "+".join(sorted(encodings))

    def read(self, layer: ExpertLayer, expert: int, *, in_file: bool = False) -> Expert:
        """Read one expert. Raises CheckpointError for values that are not what was promised."""
        known = self._layers[layer.index]
        made: dict[str, Matrix] = {}
        orders: dict[str, Order] = {}
        for matrix in known.matrices:
            panel = layer.down if matrix.stored.projection == "down" else layer.gate_up
            tensors = known.layout.tensors(known.named, expert, matrix.stored.projection)
            stays = matrix.encoding.as_stored if in_file and layer.codes_as_stored else None
            arrays = {
                part: self._array(known, matrix, tensors[part], part, expert, in_file=part == stays)
                for part in matrix.parts
            }
            bias = arrays.pop(BIAS, None)
            floats = None if bias is None else to_float32(bias, matrix.parts[BIAS].dtype)
            try:
                decoded = matrix.encoding.decode(arrays)
            except CheckpointError as error:
                msg = f"{self._where(tensors[next(iter(matrix.encoding.numbers))])}: {error}"
                raise CheckpointError(msg) from error
            orders[matrix.stored.projection] = decoded.order
            for projection, rows in matrix.stored.makes:
                made[projection] = matrix.encoding.matrix(decoded, rows, panel, floats)
        if "gate" in orders and not _same(orders["gate"], orders["up"]):
            name = known.named.name(expert, "gate", "g_idx")
            msg = (
                f"{self._checkpoint.directory}: {name} and up's give the same inputs two orders, which a "
                "blob cannot hold, nor do quantisers write it; quantise the model again"
            )
            raise CheckpointError(msg)
        neurons = orders["down"]
        if neurons is not None:
            # Down's inputs are the neurons, whose order is free: no place in the blob is needed for it.
            for projection in made.keys() - {"down"}:
                made[projection] = take_rows(made[projection], neurons)
        return Expert(made.get("gate"), made["up"], made["down"])

    def check(self, layer: ExpertLayer, expert: int) -> None:
        """Raise CheckpointError, naming the tensor, if a number of the expert is a NaN or infinite."""
        known = self._layers[layer.index]
        for matrix in known.matrices:
            tensors = known.layout.tensors(known.named, expert, matrix.stored.projection)
            for part in matrix.parts:
                numbers = matrix.encoding.numbers.get(part, tensors[part].dtype)
                if not is_finite(self._bytes(known, tensors[part], expert), numbers):
                    msg = (
                        f"{self._where(tensors[part])} has NaN or infinite weights; "
                        "the file is damaged, download it again"
                    )
                    raise CheckpointError(msg)

    def _array(
        self,
        layer: KnownLayer,
        matrix: KnownMatrix,
        tensor: Tensor,
        part: str,
        expert: int,
        *,
        in_file: bool,
    ) -> Array:
        """One expert's share of a tensor, oriented [rows, columns]."""
        shape = tensor.shape[1:] if layer.layout.stacked else tensor.shape
        numbers = matrix.encoding.numbers.get(part, tensor.dtype)
        array = view_of(self._bytes(layer, tensor, expert, in_file=in_file), numbers).reshape(shape)
        return array.T if layer.layout.transposed and array.ndim == 2 else array

    def _bytes(
        self, layer: KnownLayer, tensor: Tensor, expert: int, *, in_file: bool = False
    ) -> npt.NDArray[np.uint8]:
        """One expert's share of a tensor."""
        stacked = layer.layout.stacked
        nbytes = tensor.nbytes // tensor.shape[0] if stacked else tensor.nbytes
        return self._checkpoint.read(tensor, expert * nbytes if stacked else 0, nbytes, in_file=in_file)

    def _where(self, tensor: Tensor) -> str:
        return f"{self._checkpoint.directory / tensor.shard}: {tensor.name}"


def _same(one: Order, other: Order) -> bool:
    return one is other if one is None or other is None else bool(np.array_equal(one, other))


def quantization_hints(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """quantization_config, empty if there is none; multimodal models nest it as they nest the rest."""
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, Mapping) else {}):
        hints = place.get("quantization_config")
        if isinstance(hints, Mapping):
            return hints
    return {}
