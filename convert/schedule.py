"""The plan of a conversion: which bytes go where, and what they cost. Pure.

Invariant: a plan depends on the checkpoint's headers and the options alone, so an interrupted run and its
continuation follow the same one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lsg._core import Dtype, LayerSpec
from lsg.convert.checkpoint import Tensor
from lsg.convert.sources import ExpertLayer, Source
from lsg.convert.targets import Target

# What hubs and file systems handle comfortably; the largest a resident file gets unless one tensor is larger.
RESIDENT_FILE_BYTES: Final = 5_000_000_000
# What experts on their way may occupy, besides two: a quarter less than 1 GiB, for the program itself.
_MEMORY_BYTES: Final = 768 << 20


@dataclass(frozen=True)
class LayerPlan:
    """One layer file: what is read and what is written."""

    source: ExpertLayer
    spec: LayerSpec


@dataclass(frozen=True)
class ResidentPlan:
    """One safetensors file of the output, its tensors in file order."""

    name: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, except the small files that are copied."""

    layers: tuple[LayerPlan, ...]
    resident: tuple[ResidentPlan, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read from the checkpoint."""
        experts = sum(layer.source.expert_bytes * layer.source.num_experts for layer in self.layers)
        return experts + self.resident_bytes

    @property
    def expert_file_bytes(self) -> int:
        """Size of all layer files."""
        return sum(layer.spec.file_bytes for layer in self.layers)

    @property
    def resident_bytes(self) -> int:
        """Size of all resident tensors."""
        return sum(tensor.nbytes for file in self.resident for tensor in file.tensors)

    def slabs_in_flight(self, threads: int) -> int:
        """How many experts are in memory at once: as many as threads convert or write, if there is room."""
        wanted = threads + writing_threads(threads)
        return min(
            max(2, min(wanted, (_MEMORY_BYTES + 2 * layer.source.expert_bytes) // _slab_bytes(layer)))
            for layer in self.layers
        )

    def peak_bytes(self, threads: int) -> int:
        """Upper estimate of what they occupy."""
        return self.slabs_in_flight(threads) * max(_slab_bytes(layer) for layer in self.layers)


def writing_threads(threads: int) -> int:
    """How many threads write what `threads` convert: some disks need six to be busy, and waiting is cheap."""
    return max(6, threads // 2)


def _slab_bytes(layer: LayerPlan) -> int:
    """Of an expert on its way: its records and, unless the core reads its codes from the file, more.

    That is what was read, and its codes twice: as they come out of the encoding, and in the blob's order.
    """
    records = layer.spec.num_units * layer.spec.record_bytes
    if layer.source.codes_as_stored:
        return records
    return records + layer.source.expert_bytes + 2 * _code_bytes(layer.source)


def _code_bytes(layer: ExpertLayer) -> int:
    """Of an expert's codes in the core's matrices: a byte each, two where they are 16-bit floats."""
    weights = layer.hidden_size * layer.intermediate_size
    panels = [layer.gate_up] * (2 if layer.gated else 1) + [layer.down]
    return sum(weights * (2 if panel.dtype in (Dtype.BF16, Dtype.F16) else 1) for panel in panels)


def make_plan(source: Source, target: Target, tensors: Iterable[Tensor]) -> Plan:
    """Lay out the output; `tensors` are the checkpoint's, in file order. Raises LsgError."""
    layers = tuple(
        LayerPlan(
            layer,
            LayerSpec(
                layer_index=layer.index,
                num_experts=layer.num_experts,
                hidden_size=layer.hidden_size,
                intermediate_size=layer.intermediate_size,
                gated=layer.gated,
                gate_up=target.panel(layer.gate_up),
                down=target.panel(layer.down),
            ),
        )
        for layer in source.layers
    )
    resident = [tensor for tensor in tensors if tensor.name not in source.tensor_names]
    return Plan(layers, tuple(plan_resident(resident)))


def plan_resident(tensors: Iterable[Tensor], file_bytes: int = RESIDENT_FILE_BYTES) -> list[ResidentPlan]:
    """Cut the tensors into files of at most `file_bytes`, keeping their order across files."""
    files: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > file_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    # Wide items first, so that every tensor starts at a multiple of its item size, as readers' views demand.
    return [
        ResidentPlan(
            f"model-{number:05d}-of-{len(files):05d}.safetensors",
            tuple(sorted(file, key=lambda tensor: -_item_bits(tensor.dtype))),
        )
        for number, file in enumerate(files, start=1)
    ]


def _item_bits(dtype: str) -> int:
    """Bits of an item, read off safetensors' name of its dtype: F32, BF16, F8_E4M3; BOOL is a byte."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
