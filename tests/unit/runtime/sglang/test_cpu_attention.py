"""Attention in plain torch against its definition, a token and a head at a time in float64."""

import math
from types import SimpleNamespace

import pytest
import torch

# Sums of at most 64 products of numbers of size one, and a softmax: float32 keeps six digits of them.
TOLERANCE = 64 * 2.0**-23


@pytest.fixture(scope="module")
def cpu_attention(sglang_import):
    return sglang_import("lsg.runtime.sglang.cpu_attention")


def by_definition(query, key, value, *, scale, cap=0.0, before=-1, sinks=None):
    tokens, heads, _ = query.shape
    length, kv_heads, _ = key.shape
    out = torch.zeros(tokens, heads, value.shape[-1], dtype=torch.float64)
    for token in range(tokens):
        place = length - tokens + token
        first = 0 if before < 0 else max(0, place - before)
        for head in range(heads):
            own = head * kv_heads // heads
            scores = [
                scale * float(query[token, head].double() @ key[at, own].double())
                for at in range(first, place + 1)
            ]
            if cap:
                scores = [cap * math.tanh(score / cap) for score in scores]
            total = sum(map(math.exp, scores))
            if sinks is not None:
                total += math.exp(sinks[head])
            for at, score in enumerate(scores, first):
                out[token, head] += math.exp(score) / total * value[at, own].double()
    return out


@pytest.mark.parametrize("at_once", [1, 1 << 24])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cap": 2.0},
        {"before": 2},
        {"before": 0},
        {"sinks": True},
        {"before": 3, "sinks": True, "cap": 5.0},
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads", "value_dim"), [(4, 2, 8), (6, 1, 5), (3, 3, 8)])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (1, 9), (5, 5), (4, 9)])
def test_attention(cpu_attention, monkeypatch, tokens, length, heads, kv_heads, value_dim, options, at_once):
    monkeypatch.setattr(cpu_attention, "SCORES", at_once)
    generator = torch.Generator().manual_seed(tokens * length)
    query, key, value = (
        torch.randn(shape, generator=generator)
        for shape in ((tokens, heads, 8), (length, kv_heads, 8), (length, kv_heads, value_dim))
    )
    options = {"scale": 0.4} | options
    if "sinks" in options:
        options["sinks"] = torch.randn(heads, generator=generator)
    expected = by_definition(query, key, value, **options)
    out = cpu_attention.attention(query, key, value, **options)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE)
    assert cpu_attention.attention(query.bfloat16(), key, value, **options).dtype == torch.bfloat16


@pytest.fixture
def backend(cpu_attention):
    """A backend without its pools."""
    made = object.__new__(cpu_attention.TorchAttention)
    made.use_sliding_window_kv_pool = False
    return made


def layer(**changes):
    plain = {"layer_id": 0, "qk_head_dim": 8, "v_head_dim": 8, "logit_cap": 0.0, "scaling": 0.4}
    heads = {"tp_q_head_num": 2, "tp_k_head_num": 2, "tp_v_head_num": 2, "sliding_window_size": -1}
    return SimpleNamespace(**plain | heads | changes)


@pytest.mark.parametrize(
    ("changes", "sinks", "ours"),
    [
        ({}, None, False),
        ({"sliding_window_size": 3}, None, False),
        ({}, torch.zeros(2), True),
        ({"logit_cap": 30.0}, None, True),
        ({"v_head_dim": 4}, None, True),
    ],
)
def test_sglang_computes_what_it_can(backend, changes, sinks, ours):
    backend._layer, backend._sinks = layer(**changes), sinks
    assert backend._base_can() is not ours


def test_a_batch_reads_each_requests_slots(backend, cpu_attention):
    """Two requests: one decodes its third token, one extends an empty cache by two."""
    keys, values = torch.randn(10, 2, 8), torch.randn(10, 2, 8)
    table = torch.tensor([[0, 0, 0], [7, 2, 5], [1, 4, 0]])
    query, out = torch.randn(3, 2, 8), torch.zeros(3, 2, 8)
    backend._layer, backend._sinks = layer(), None
    lengths, new = torch.tensor([3, 2]), torch.tensor([1, 2])
    backend._attend(query, out, keys, values, table, torch.tensor([1, 2]), lengths, new)
    for part, slots in ((slice(0, 1), [7, 2, 5]), (slice(1, 3), [1, 4])):
        expected = by_definition(query[part], keys[slots], values[slots], scale=0.4)
        torch.testing.assert_close(out[part].double(), expected, rtol=0, atol=TOLERANCE)


def test_a_window_of_its_own_has_slots_of_its_own(backend):
    keys, values, query, out = (
        torch.randn(9, 2, 8),
        torch.randn(9, 2, 8),
        torch.randn(1, 2, 8),
        torch.zeros(1, 2, 8),
    )
    backend.use_sliding_window_kv_pool = True
    backend.token_to_kv_pool = SimpleNamespace(
        layers_mapping={0: (0, True)}, translate_loc_from_full_to_swa=lambda slots: slots + 4
    )
    backend._layer, backend._sinks = layer(sliding_window_size=1), None
    assert not backend._base_can()
    table, one = torch.tensor([[2, 0, 3]]), torch.tensor([1])
    backend._attend(query, out, keys, values, table, torch.tensor([0]), torch.tensor([3]), one)
    expected = by_definition(query, keys[[6, 4, 7]], values[[6, 4, 7]], scale=0.4, before=1)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE)


def test_latent_keys_are_not_read_as_whole_ones(backend):
    """DeepSeek's cache holds latent keys of another size: only new tokens have whole ones."""
    key, value = torch.randn(4, 2, 8), torch.randn(4, 2, 4)
    cache = torch.randn(6, 1, 12)
    backend._layer, backend._sinks, backend._new = layer(v_head_dim=4), None, (key, value)
    got, _ = backend._key_value(slice(2, 4), torch.tensor([1, 2]), cache, cache)
    assert torch.equal(got, key[2:])
    with pytest.raises(NotImplementedError, match="latent keys"):
        backend._key_value(slice(2, 4), torch.tensor([0, 1, 2]), cache, cache)
