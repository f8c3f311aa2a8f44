"""The manifest of a finished conversion.

Invariant: says what the layer files hold, not what was meant to be written: headers and tables are read back.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from lsg import manifest
from lsg._core import LayerFile
from lsg.convert.journal import SlabDone
from lsg.convert.schedule import LayerPlan


def layer_entry(layer: LayerPlan, slabs: Mapping[tuple[int, int], SlabDone], model: Path) -> manifest.Layer:
    """One layer's entry; opening the file to read its checksums also validates it. Raises FormatError."""
    spec = layer.spec
    name = manifest.layer_file_name(spec.layer_index)
    file = LayerFile(str(model / manifest.DIRECTORY / name))
    done = [slabs[spec.layer_index, expert] for expert in range(spec.num_experts)]
    return manifest.Layer(
        index=spec.layer_index,
        prefix=layer.source.prefix,
        file=name,
        file_bytes=spec.file_bytes,
        num_experts=spec.num_experts,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        unit_rows=spec.unit_rows,
        gated=spec.gated,
        activation=layer.source.activation,
        gate_up=manifest.Panel.of(spec.gate_up),
        down=manifest.Panel.of(spec.down),
        header_crc32c=file.header_crc32c,
        table_crc32c=file.table_crc32c(),
        slab_crc32c=[slab.crc32c for slab in done],
        error=_layer_error(done),
    )


def _layer_error(slabs: list[SlabDone]) -> manifest.QuantizationError | None:
    """Relative squared errors over the layer's experts, in their order; None if no value changed."""
    gate, up, down = (
        _relative([error for slab in slabs if (error := slab.errors[projection])]) for projection in range(3)
    )
    if gate is up is down is None:
        return None
    return manifest.QuantizationError(gate=gate, up=up or 0.0, down=down or 0.0)


def _relative(sums: list[tuple[float, float]]) -> float | None:
    if not sums:
        return None
    norm = math.fsum(norm for _, norm in sums)
    return math.fsum(error for error, _ in sums) / norm if norm else 0.0
