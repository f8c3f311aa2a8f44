"""Layers in an engine, called as a model would call them, with cold weights.

Invariant: layers take turns and tokens choose random distinct experts, so that by the time an expert's bytes
are used again, the caches have seen the rest of the working set.
"""

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lsg._core import Engine, LayerSpec
from lsg.runtime.bench.shapes import expert_bytes
from lsg.runtime.bench.synthetic import LayerWriter
from lsg.runtime.placement import Placement

# What workers of a measured engine spin for, as beside a GPU. What 50 µs would measure is this program: long
# layers push its code out of the caches, and then it takes longer than that between two calls.
SPIN_US: Final = 1000
_MIN_CALLS: Final = 3
# Random choices of experts that take turns; a long batch chooses nearly all experts anyway.
_CHOSEN_TOKENS: Final = 2048


@dataclass(frozen=True)
class Call:
    """One layer, one batch: seconds, and the bytes of the experts that some token chose, counted once."""

    seconds: float
    nbytes: int


class Layers:
    """One engine over random layers of one geometry that together have at least `working_set` bytes."""

    def __init__(
        self,
        engine: Engine,
        placed: Placement,
        spec: LayerSpec,
        top_k: int,
        working_set: float,
        scratch: Path,
        load: str,
    ) -> None:
        self.spec = spec
        self._engine = engine
        self._top_k = top_k
        self._random = np.random.default_rng(0)
        writer = LayerWriter(spec, engine.threads)
        self._layers: list[int] = []
        nodes = placed.memory(0, spec.num_units)
        for _ in range(max(2, -(-int(working_set) // spec.file_bytes))):
            with writer.written(scratch / "layer.lsgb") as path:
                self._layers.append(engine.add_layer(str(path), load=load, nodes=nodes))
        self._next = count()
        # No page is mapped for the first time while something is timed.
        every = np.resize(np.arange(spec.num_experts, dtype=np.int32), (-(-spec.num_experts // top_k), top_k))
        hidden, out, weights = self._inputs(len(every))
        for layer in self._layers:
            self._engine.forward(layer, **self._batch(hidden, every, weights, out))

    @property
    def count(self) -> int:
        """How many layers take turns."""
        return len(self._layers)

    def int8_inputs(self, tokens: int) -> bool:
        """Whether the engine quantises the experts' inputs of such a batch."""
        return self._engine.int8_inputs(self._layers[0], tokens, self._top_k)

    def measure(self, tokens: int, seconds: float) -> list[Call]:
        """Calls for about `seconds`, three at least; of calls longer than `seconds`, one."""
        hidden, out, weights = self._inputs(tokens)
        choices = [self._choose(tokens) for _ in range(min(64, max(2, _CHOSEN_TOKENS // tokens)))]
        unique = [int(np.unique(ids).size) * expert_bytes(self.spec) for ids in choices]
        # NumPy takes microseconds to give an address.
        batches = [self._batch(hidden, ids, weights, out) for ids in choices]

        def call() -> Call:
            step = next(self._next)
            choice = step % len(choices)
            layer, batch = self._layers[step % len(self._layers)], batches[choice]
            began = time.perf_counter()
            self._engine.forward(layer, **batch)
            return Call(time.perf_counter() - began, unique[choice])

        first = call()  # also gets the engine its workspace
        if first.seconds > seconds:
            return [first]
        calls = [call()]
        taken = calls[0].seconds
        # The pause between two calls stays shorter than workers spin.
        while len(calls) < _MIN_CALLS or taken < seconds:
            calls.append(call())
            taken += calls[-1].seconds
        return calls

    def operations(self, tokens: int) -> int:
        """Multiplications and additions of gate, up and down."""
        return 6 * self.spec.hidden_size * self.spec.intermediate_size * self._top_k * tokens

    def _inputs(self, tokens: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
        hidden = self._random.standard_normal((tokens, self.spec.hidden_size), np.float32)
        # Upper halves of floats: bf16, truncated.
        bf16 = (hidden.view(np.uint32) >> 16).astype(np.uint16)
        return bf16, np.empty_like(bf16), np.full((tokens, self._top_k), 1 / self._top_k, np.float32)

    def _choose(self, tokens: int) -> npt.NDArray[np.int32]:
        keys = self._random.random((tokens, self.spec.num_experts), np.float32)
        return np.ascontiguousarray(keys.argpartition(self._top_k - 1)[:, : self._top_k], np.int32)

    def _batch(
        self,
        hidden: npt.NDArray[Any],
        ids: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        out: npt.NDArray[Any],
    ) -> dict[str, Any]:
        """Arguments of Engine.forward; the arrays must outlive them."""
        return {
            "hidden": hidden.ctypes.data,
            "topk_ids": ids.ctypes.data,
            "topk_weights": weights.ctypes.data,
            "out": out.ctypes.data,
            "tokens": len(ids),
            "top_k": self._top_k,
            "dtype": "bf16",
        }
