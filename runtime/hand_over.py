"""The engine's part of a captured CUDA graph: inputs to the CPU, routed experts there, output back.

Invariant: nothing is allocated or waited for while a stream captures. Pinned memory for a batch exists by
then, because sglang runs every batch it is about to capture first without a graph.
"""

import atexit
import threading
from collections.abc import Callable
from typing import Final

import torch

from lsg import _core

# More tokens than this are prefill, which is not captured; their pinned memory would be wasted.
MAX_TOKENS: Final = 4096
# Decode batches that sglang captures by default on most GPUs.
FIRST_TOKENS: Final = 256


class HandOver:
    """One process's way between its GPU and its engine."""

    def __init__(
        self,
        engine: _core.Engine,
        way: str,
        *,
        hidden_size: int,
        top_k: int,
        core: int,
        on_failure: Callable[[str], None],
    ) -> None:
        self._core = _core.HandOver(
            engine, way=way, tokens=FIRST_TOKENS, hidden_size=hidden_size, top_k=top_k, core=core
        )
        # The failed computation's GPU waits for some time, so that nothing is served from its output.
        self._watch = threading.Thread(
            target=_watch, args=(self._core, on_failure), name="lsg-watch", daemon=True
        )
        self._watch.start()
        # The driver takes its memory back when the process ends, and nobody may look at it by then.
        atexit.register(self._close)

    def _close(self) -> None:
        torch.cuda.synchronize()
        self._core.close()

    def reserve(self, tokens: int, hidden_size: int, top_k: int) -> None:
        """Pin memory for a batch that may be captured next."""
        if tokens <= MAX_TOKENS:
            self._core.reserve(tokens=tokens, hidden_size=hidden_size, top_k=top_k)

    def submit(
        self,
        handle: int,
        dtype: str,
        hidden: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Enqueue a layer on the current stream; the result [tokens, H] is there in stream order.

        Contiguous, on the GPU: hidden [tokens, H]; topk_ids int32, topk_weights float32 [tokens, top_k].
        """
        out = torch.empty_like(hidden)
        tokens, top_k = topk_ids.shape
        self._core.submit(
            handle,
            stream=torch.cuda.current_stream(hidden.device).cuda_stream,
            hidden=hidden.data_ptr(),
            topk_ids=topk_ids.data_ptr(),
            topk_weights=topk_weights.data_ptr(),
            out=out.data_ptr(),
            tokens=tokens,
            top_k=top_k,
            hidden_size=hidden.shape[1],
            dtype=dtype,
        )
        return out


def _watch(core: "_core.HandOver", on_failure: Callable[[str], None]) -> None:
    message = core.wait_for_failure()
    if message is not None:
        on_failure(message)
