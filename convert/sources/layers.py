"""A layer's names, layout and encodings put together, checked against each other.

Invariant: a KnownLayer is complete: every part of every expert is there, with the dtype and shape of the
layer's encoding. Layers may differ from each other, and down from gate and up, but not a layer's experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lsg import CheckpointError
from lsg.convert.checkpoint import Tensor
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources.base import ExpertLayer
from lsg.convert.sources.encoding import Encoding, Part
from lsg.convert.sources.encodings import recognise
from lsg.convert.sources.layouts import Layout, Stored, find_layout, used_parts
from lsg.convert.sources.names import NamedLayer

BIAS: Final = "bias"
_BIAS_DTYPES: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class KnownMatrix:
    """A stored matrix, how it is encoded, and what each of its parts looks like."""

    stored: Stored
    encoding: Encoding
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class KnownLayer:
    """A layer that can be read; `described` is what the rest of the converter knows of it."""

    named: NamedLayer
    layout: Layout
    matrices: tuple[KnownMatrix, ...]
    described: ExpertLayer

    def tensor_names(self) -> set[str]:
        """Every tensor that is understood: those that are read, and those that may be dropped."""
        return {
            tensor.name
            for matrix in self.matrices
            for expert in range(1 if self.layout.stacked else self.described.num_experts)
            for tensor in self._understood(matrix, expert)
        }

    def _understood(self, matrix: KnownMatrix, expert: int) -> list[Tensor]:
        tensors = self.layout.tensors(self.named, expert, matrix.stored.projection)
        used = used_parts(tensors)
        return [tensor for part, tensor in tensors.items() if part not in used or part in matrix.parts]


def know_layer(named: NamedLayer, geometry: MoeGeometry, hints: Mapping[str, Any]) -> KnownLayer | None:
    """The layer, None if it is of a kind that is not known. Raises CheckpointError, not naming the model."""
    num_experts = geometry.num_experts
    layout = find_layout(named)
    if layout is None:
        return None
    matrices: list[KnownMatrix] = []
    for stored in layout.stored:
        if stored.projection == "up" and matrices:
            # Gate and up share a panel of the blob, so up is to look like gate.
            matrices.append(KnownMatrix(stored, matrices[0].encoding, matrices[0].parts))
            continue
        matrix = _know_matrix(named, layout, stored, hints)
        if matrix is None:
            return None
        matrices.append(matrix)
    for matrix in matrices:
        for expert in range(1 if layout.stacked else num_experts):
            _check(named, layout, matrix, expert, num_experts)
    highest = max((expert for expert, _ in named.matrices if expert is not None), default=0)
    if highest >= num_experts:
        msg = f"{named.prefix} has an expert {highest}, but config.json says that there are {num_experts}"
        raise CheckpointError(msg)
    try:
        described = _describe(named, layout, matrices, geometry)
    except CheckpointError as error:
        msg = f"{named.prefix}: {error}"
        raise CheckpointError(msg) from error
    return KnownLayer(named, layout, tuple(matrices), described)


def _know_matrix(
    named: NamedLayer, layout: Layout, stored: Stored, hints: Mapping[str, Any]
) -> KnownMatrix | None:
    # The lowest expert that has the matrix stands for all; a missing one is reported by `_check`.
    example = min(expert or 0 for expert, projection in named.matrices if projection == stored.projection)
    tensors = used_parts(layout.tensors(named, example, stored.projection))
    parts = {name: layout.part(tensor) for name, tensor in tensors.items()}
    bias = parts.pop(BIAS, None)
    try:
        encoding = recognise(parts, stored.rows, stored.columns, hints)
    except CheckpointError as error:
        name = named.name(None if layout.stacked else example, stored.projection, str(error))
        raise CheckpointError(name) from error
    if encoding is None or (bias and (bias.dtype not in _BIAS_DTYPES or bias.shape != (stored.rows,))):
        return None
    return KnownMatrix(stored, encoding, parts | ({BIAS: bias} if bias else {}))


def _check(named: NamedLayer, layout: Layout, matrix: KnownMatrix, expert: int, num_experts: int) -> None:
    projection = matrix.stored.projection
    tensors = layout.tensors(named, expert, projection)
    for part, expected in matrix.parts.items():
        name = named.name(None if layout.stacked else expert, projection, part)
        tensor = tensors.get(part)
        if tensor is None:
            others = ", ".join(sorted(used_parts(tensors)))
            why = (
                f"there is only {others} and a layer's experts must all have one format"
                if others
                else f"config.json says that there are {num_experts} experts; download the checkpoint again"
            )
            msg = f"{name} is missing, but {why}"
            raise CheckpointError(msg)
        if layout.stacked and tensor.shape[:1] != (num_experts,):
            found = list(tensor.shape)
            msg = (
                f"{tensor.name} has shape {found}, but config.json says that there are {num_experts} experts"
            )
            raise CheckpointError(msg)
        found_part = layout.part(tensor)
        if found_part.dtype != expected.dtype:
            msg = f"{tensor.name} is {found_part.dtype}, expected {expected.dtype} like the layer's others"
            raise CheckpointError(msg)
        if found_part.shape != expected.shape:
            msg = f"{tensor.name} has shape {list(found_part.shape)}, expected {list(expected.shape)}"
            raise CheckpointError(msg)


def _describe(
    named: NamedLayer, layout: Layout, matrices: list[KnownMatrix], geometry: MoeGeometry
) -> ExpertLayer:
    first, down = matrices[0], matrices[-1]
    read = [
        layout.tensors(named, 0, matrix.stored.projection)[part]
        for matrix in matrices
        for part in matrix.parts
    ]
    return ExpertLayer(
        index=named.index,
        prefix=named.prefix,
        num_experts=geometry.num_experts,
        hidden_size=layout.hidden_size,
        intermediate_size=layout.intermediate_size,
        gated=layout.gated,
        activation=geometry.activation_of(named.index),
        gate_up=first.encoding.panel(
            [rows for matrix in matrices[:-1] for _, rows in matrix.stored.makes],
            bias=BIAS in first.parts,
            rows_move=down.encoding.ordered,
            k_permutation=first.encoding.ordered,
        ),
        down=down.encoding.panel([rows for _, rows in down.stored.makes], bias=BIAS in down.parts),
        expert_bytes=sum(tensor.nbytes for tensor in read) // (geometry.num_experts if layout.stacked else 1),
        # As stored, and in rows one after the other.
        codes_as_stored=not layout.transposed
        and all(matrix.encoding.as_stored for matrix in matrices)
        and all(rows.step == 1 for matrix in matrices for _, rows in matrix.stored.makes),
    )
