"""What sglang's attention in plain torch lacks: sinks, capped scores, latent keys, pools of sliding windows.

Invariant: whatever sglang's own `torch_native` backend can compute, it computes; this only adds to it, so
that on a CPU without AMX the same models can be served (gpt-oss, gemma-4, DeepSeek's) as on one with it.
"""

from typing import Any, Final

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

# Scores computed at a time, in float32: 64 MiB.
SCORES: Final = 1 << 24


def register() -> None:
    """Put this backend in the place of `torch_native`."""
    register_attention_backend("torch_native")(TorchAttention)


class TorchAttention(TorchNativeAttnBackend):  # type: ignore[misc]
    """`torch_native`, and what it lacks."""

    _layer: Any = None
    _new: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    _sinks: torch.Tensor | None = None

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        *args: Any,
        sinks: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of new tokens, a prompt's or one of each request; arguments as in the base class."""
        self._layer, self._new, self._sinks = layer, (k, v), sinks
        out: torch.Tensor = super().forward(q, k, v, layer, *args, **kwargs)
        return out

    def _run_sdpa_forward_extend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        caches = (k_cache, v_cache, req_to_token)
        if self._base_can() or not kwargs["causal"]:
            prefixes = (extend_prefix_lens, extend_seq_lens)
            return super()._run_sdpa_forward_extend(
                query, output, *caches, req_pool_indices, seq_lens, *prefixes, *args, **kwargs
            )
        return self._attend(query, output, *caches, req_pool_indices, seq_lens, extend_seq_lens)

    def _run_sdpa_forward_decode(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        caches = (k_cache, v_cache, req_to_token)
        if self._base_can() or kwargs["is_cross_attn"]:
            return super()._run_sdpa_forward_decode(
                query, output, *caches, req_pool_indices, seq_lens, *args, **kwargs
            )
        return self._attend(query, output, *caches, req_pool_indices, seq_lens, torch.ones_like(seq_lens))

    def _base_can(self) -> bool:
        layer = self._layer
        plain = self._sinks is None and not layer.logit_cap and layer.qk_head_dim == layer.v_head_dim
        return plain and not self._windowed_pool(layer.layer_id)

    def _windowed_pool(self, layer_id: int) -> bool:
        """Whether the layer's keys are in a pool of their own, with slots of their own."""
        return bool(self.use_sliding_window_kv_pool and self.token_to_kv_pool.layers_mapping[layer_id][1])

    def _attend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        new_lens: torch.Tensor,
    ) -> torch.Tensor:
        layer, start = self._layer, 0
        requests = zip(req_pool_indices.tolist(), seq_lens.tolist(), new_lens.tolist(), strict=True)
        for request, length, new in requests:
            slots = req_to_token[request, :length]
            if self._windowed_pool(layer.layer_id):
                slots = self.token_to_kv_pool.translate_loc_from_full_to_swa(slots)
            mine = slice(start, start + new)
            key, value = self._key_value(mine, slots, k_cache, v_cache)
            output[mine] = attention(
                query[mine],
                key,
                value,
                scale=layer.scaling,
                cap=layer.logit_cap or 0.0,
                before=-1 if layer.sliding_window_size is None else layer.sliding_window_size,
                sinks=self._sinks,
            )
            start += new
        return output

    def _key_value(
        self, mine: slice, slots: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A request's keys and values: of a model that caches latent ones, the new tokens' own."""
        layer, (key, value) = self._layer, self._new
        if k_cache.shape[-1] == layer.qk_head_dim:
            return k_cache[slots], v_cache[slots]
        if key is None or value is None or len(slots) != mine.stop - mine.start:
            msg = f"layer {layer.layer_id}: latent keys of earlier tokens cannot be read as whole ones"
            raise NotImplementedError(msg)
        return key.view(-1, layer.tp_k_head_num, layer.qk_head_dim)[mine], value.view(
            -1, layer.tp_v_head_num, layer.v_head_dim
        )[mine]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    cap: float = 0.0,
    before: int = -1,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a sequence's last tokens, [tokens, heads, Dv], in query's dtype.

    query: [tokens, heads, D]; key: [length, kv_heads, D]; value: [length, kv_heads, Dv]; sinks: [heads],
    scores that no value belongs to. cap: scores are cap · tanh(score / cap), 0 is no cap. before: how many
    tokens before itself a token sees, -1 is all.
    """
    tokens, heads, _ = query.shape
    length, kv_heads, _ = key.shape
    key, value = key.float(), value.float()
    at_once = max(1, SCORES // (heads * length))
    parts = []
    for begin in range(0, tokens, at_once):
        part = query[begin : begin + at_once].float().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("thgd,shd->hgts", part, key) * scale
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        places = torch.arange(begin, begin + len(part)) + length - tokens
        distance = places[:, None] - torch.arange(length)
        hidden = distance < 0 if before < 0 else (distance < 0) | (distance > before)
        scores.masked_fill_(hidden, -torch.inf)
        if sinks is not None:
            column = sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, len(part), 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1)[..., :length]
        parts.append(torch.einsum("hgts,shd->thgd", weights, value).flatten(1, 2))
    return torch.cat(parts).to(query.dtype)
