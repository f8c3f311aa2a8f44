"""How far results may be apart when the same products are added in another order.

Invariant: derived from the engine's arithmetic on every level below BF16, which no emulated machine has. Its
products in groups of 32 are exact integers; what is rounded is the float32 sum of the groups' terms, one for
each unit of 32 neurons and each chosen expert.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lsg import _core, manifest
from numa import batches

UNIT_ROUNDOFF = 2.0**-24
# A term's own roundings: the two scales, the expert's weight, and as many in its own computation here.
ROUNDINGS_OF_A_TERM = 6


@dataclass(frozen=True)
class Expected:
    """Of every layer's sampled outputs, [layers, SAMPLE]: sum in float64, and how far off float32 may be."""

    value: npt.NDArray[np.float64]
    bound: npt.NDArray[np.float64]

    def worst(self, found: npt.NDArray[np.float32]) -> float:
        """The largest error as a share of what is allowed; NaN stays NaN."""
        return float((np.abs(found - self.value) / self.bound).max())


def expected(model: Path, tokens: int, share: float) -> Expected:
    """Every term computed apart, by an engine that has only its unit, of tokens that have only its expert."""
    content = manifest.load(model)
    # Every level below BF16 gives these bits; those above round inputs.
    engine = _core.Engine(threads=2, isa="scalar")
    values, bounds = [], []
    for layer in content.layers:
        if layer.unit_rows != 32:
            msg = f"units of {layer.unit_rows} neurons have several groups of terms"
            raise ValueError(msg)
        batch = batches.make(layer, tokens, share, content.top_k)
        path = str(model / manifest.DIRECTORY / layer.file)
        value, size, terms = np.zeros(batches.SAMPLE), np.zeros(batches.SAMPLE), 0
        for unit in range(-(-layer.intermediate_size // layer.unit_rows)):
            handle = engine.add_layer(path, unit_begin=unit, unit_end=unit + 1)
            for choice in range(content.top_k):
                one = slice(choice, choice + 1)
                alone = batches.Batch(
                    batch.hidden,
                    np.ascontiguousarray(batch.ids[:, one]),
                    np.ascontiguousarray(batch.weights[:, one]),
                )
                term = batch.sample(alone.forward(engine, handle)).astype(np.float64)
                value += term
                size += np.abs(term)
                terms += 1
        values.append(value)
        bounds.append((terms + ROUNDINGS_OF_A_TERM) * UNIT_ROUNDOFF * size)
    return Expected(np.stack(values), np.stack(bounds))
