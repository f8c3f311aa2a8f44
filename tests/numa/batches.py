"""The batches that are computed, the same in every machine, and what is compared of their results."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lsg import _core
from lsg.manifest import Layer

# Tokens, and how many of them have experts: one token; a few; the 128 that the engine computes in one pass.
SIZES = ((1, 1.0), (5, 1.0), (128, 0.05))
# Of a longer prompt each node sums its own units first: the same within rounding only.
PROMPT = (200, 0.05)
# Compared of every layer's output for a long prompt: all of it would take the serial port minutes.
SAMPLE = 1024


@dataclass(frozen=True)
class Batch:
    """Inputs of a layer: hidden [tokens, H], topk_ids and topk_weights [tokens, top_k]."""

    hidden: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def forward(self, engine: _core.Engine, handle: int) -> npt.NDArray[np.float32]:
        """The layer's output, [tokens, H]."""
        out = np.full_like(self.hidden, np.nan)
        arrays = (self.hidden, self.ids, self.weights, out)
        tokens, top_k = self.ids.shape
        engine.forward(
            handle, *(array.ctypes.data for array in arrays), tokens=tokens, top_k=top_k, dtype="f32"
        )
        return out

    def sample(self, out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[SAMPLE] outputs of tokens that have experts."""
        rng = np.random.default_rng(0)
        busy = np.flatnonzero((self.ids >= 0).any(axis=1))
        return out[rng.choice(busy, SAMPLE), rng.integers(out.shape[1], size=SAMPLE)]


def make(layer: Layer, tokens: int, share: float, top_k: int) -> Batch:
    """Random inputs; only a `share` of the tokens have experts."""
    rng = np.random.default_rng([tokens, layer.index])
    hidden = rng.normal(size=(tokens, layer.hidden_size)).astype(np.float32)
    order = np.argsort(rng.random((tokens, layer.num_experts)))[:, :top_k]
    ids = np.where(rng.random((tokens, 1)) < share, order, -1).astype(np.int32)
    return Batch(hidden, ids, rng.uniform(0.1, 1, ids.shape).astype(np.float32))
