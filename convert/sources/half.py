"""Unquantised experts: a BF16 or F16 matrix per expert and projection.

    model.layers.N.mlp.experts.E.{gate,up,down}_proj.weight    [I, H], [I, H], [H, I]

Invariant: one dtype in a layer; layers may differ.
"""

import re
from collections import defaultdict
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Dtype, Matrix, PanelFormat
from lsg.convert.checkpoint import Checkpoint, Tensor
from lsg.convert.geometry import MoeGeometry
from lsg.convert.sources.base import Expert, ExpertLayer

_NAME: Final = re.compile(
    r"(?P<prefix>(?:model\.|language_model\.)+layers\.(?P<layer>\d+)\.mlp\.experts)"
    r"\.(?P<expert>\d+)\.(?P<projection>gate|up|down)_proj\.weight"
)
_DTYPES: Final = {"BF16": Dtype.BF16, "F16": Dtype.F16}
# The smallest bit pattern, sign apart, whose exponent is all ones: infinity; NaNs lie above it.
_INFINITY: Final = {"BF16": 0x7F80, "F16": 0x7C00}
_SIGN: Final = 0x8000

_Experts = dict[tuple[int, str], Tensor]


class HalfSource:
    """The experts of a BF16 or F16 checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, geometry: MoeGeometry, found: dict[int, tuple[str, _Experts]]
    ) -> None:
        """Check that every expert of every layer in `found` is there. Raises CheckpointError."""
        self._checkpoint = checkpoint
        self._experts = {index: experts for index, (_, experts) in found.items()}
        self.layers = tuple(
            _checked_layer(checkpoint, geometry, index, *found[index]) for index in sorted(found)
        )
        self.tensor_names = frozenset(t.name for experts in self._experts.values() for t in experts.values())
        self.format = "+".join(sorted({t.dtype.lower() for e in self._experts.values() for t in e.values()}))

    @classmethod
    def recognise(cls, checkpoint: Checkpoint, geometry: MoeGeometry) -> "HalfSource | None":
        """The checkpoint's experts, or None when not one of them is of this kind."""
        found: dict[int, tuple[str, _Experts]] = {}
        by_layer: dict[int, _Experts] = defaultdict(dict)
        for tensor in checkpoint.tensors.values():
            match = _NAME.fullmatch(tensor.name)
            if match:
                layer = int(match["layer"])
                by_layer[layer][int(match["expert"]), match["projection"]] = tensor
                found[layer] = (match["prefix"], by_layer[layer])
        if not any(t.dtype in _DTYPES for _, experts in found.values() for t in experts.values()):
            return None
        return cls(checkpoint, geometry, found)

    def read(self, layer: ExpertLayer, expert: int) -> Expert:
        """Read one expert's three matrices. Raises CheckpointError for NaN or infinite weights."""
        gate, up, down = (
            Matrix(self._weight(self._experts[layer.index][expert, projection]))
            for projection in ("gate", "up", "down")
        )
        return Expert(gate, up, down)

    def _weight(self, tensor: Tensor) -> npt.NDArray[np.uint16]:
        bits = self._checkpoint.read(tensor).view(np.uint16)
        # Two passes without a temporary: the largest positive number, then the most negative one.
        infinity = _INFINITY[tensor.dtype]
        if bits.view(np.int16).max() >= infinity or bits.max() >= _SIGN | infinity:
            where = self._checkpoint.directory / tensor.shard
            msg = (
                f"{where}: {tensor.name} has NaN or infinite weights; the file is damaged, download it again"
            )
            raise CheckpointError(msg)
        return bits.reshape(tensor.shape)


def _checked_layer(
    checkpoint: Checkpoint, geometry: MoeGeometry, index: int, prefix: str, experts: _Experts
) -> ExpertLayer:
    hidden, intermediate = geometry.hidden_size, geometry.intermediate_size
    shapes = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    dtype = next((t.dtype for t in experts.values() if t.dtype in _DTYPES), "")
    for expert in range(geometry.num_experts):
        for projection, shape in shapes.items():
            name = f"{prefix}.{expert}.{projection}_proj.weight"
            tensor = experts.get((expert, projection))
            if tensor is None or tensor.name != name:
                msg = (
                    f"{checkpoint.directory}: {name} is missing, but config.json says that there are "
                    f"{geometry.num_experts} experts; download the checkpoint again"
                )
                raise CheckpointError(msg)
            if tensor.dtype != dtype:
                where = checkpoint.directory / tensor.shard
                msg = f"{where}: {name} is {tensor.dtype}, expected {dtype or ' or '.join(_DTYPES)}"
                raise CheckpointError(msg)
            if tensor.shape != shape:
                msg = (
                    f"{checkpoint.directory / tensor.shard}: {name} has shape {list(tensor.shape)}, "
                    f"config.json promises {list(shape)}"
                )
                raise CheckpointError(msg)
    if len(experts) != len(shapes) * geometry.num_experts:
        highest = max(expert for expert, _ in experts)
        msg = (
            f"{checkpoint.directory}: {prefix} has an expert {highest}, but config.json says that there are "
            f"{geometry.num_experts}"
        )
        raise CheckpointError(msg)
    panel = PanelFormat(_DTYPES[dtype])
    return ExpertLayer(
        index=index,
        prefix=prefix,
        num_experts=geometry.num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=True,
        gate_up=panel,
        down=panel,
        expert_bytes=3 * 2 * hidden * intermediate,
    )
