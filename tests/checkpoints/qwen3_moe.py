"""Qwen3-MoE checkpoints: random weights, the names and dtypes of the published ones (one tensor per expert).

The weights are scaled so that activations keep their size through the layers and the experts matter: a wrong
expert shows in the log-probabilities.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.shards import write_shards
from checkpoints.tokenizer import END_OF_TEXT, IM_END, make_tokenizer, write_tokenizer

HEAD_DIM = 32


def make_checkpoint(
    path: str | Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 48,
    experts: int = 8,
    top_k: int = 2,
    dtype: str = "bfloat16",
    seed: int = 0,
    shards: int = 2,
    dense_layers: Sequence[int] = (),
) -> Path:
    """Write a random checkpoint into `path` (made if absent) and return it.

    `dense_layers` have an ordinary MLP in place of experts. The same arguments give the same tensors.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    config = make_config(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        experts=experts,
        top_k=top_k,
        dtype=dtype,
        vocab_size=tokenizer.get_vocab_size(),
        dense_layers=dense_layers,
    )
    tensors = _random_tensors(config, torch.Generator().manual_seed(seed))
    write_shards(path, tensors, shards)
    write_tokenizer(path, tokenizer)
    write_configs(path, config, tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT))
    return path


def make_config(
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    experts: int,
    top_k: int,
    dtype: str,
    vocab_size: int,
    dense_layers: Sequence[int] = (),
) -> dict[str, Any]:
    """config.json of a Qwen3MoeForCausalLM."""
    heads = max(2, hidden // HEAD_DIM)
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense_layers),
        "moe_intermediate_size": intermediate,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "torch_dtype": dtype,
    }


def write_configs(path: Path, config: dict[str, Any], eos_token_id: int, pad_token_id: int) -> None:
    """Write config.json and generation_config.json."""
    ids = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    (path / "config.json").write_text(json.dumps(config | ids, indent=2) + "\n")
    (path / "generation_config.json").write_text(json.dumps(ids | {"do_sample": False}, indent=2) + "\n")


def _random_tensors(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q_dim = config["num_attention_heads"] * head_dim
    kv_dim = config["num_key_value_heads"] * head_dim
    vocab_size = config["vocab_size"]
    dtype = getattr(torch, config["torch_dtype"])

    def matrix(out_features: int, in_features: int, gain: float = 1.0) -> torch.Tensor:
        values = torch.randn(out_features, in_features, generator=generator)
        return (values * (gain / in_features**0.5)).to(dtype)

    def norm(size: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(size, generator=generator)).to(dtype)

    def mlp(prefix: str, intermediate: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.gate_proj.weight": matrix(intermediate, hidden),
            f"{prefix}.up_proj.weight": matrix(intermediate, hidden),
            # silu(gate) · up has about half the size of its inputs: a gain of 2 restores it.
            f"{prefix}.down_proj.weight": matrix(hidden, intermediate, gain=2.0),
        }

    # Token embeddings of size one, as the norms of the layers expect.
    tensors = {"model.embed_tokens.weight": matrix(vocab_size, hidden, gain=hidden**0.5)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": norm(hidden),
            f"{prefix}.self_attn.q_proj.weight": matrix(q_dim, hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(kv_dim, hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(kv_dim, hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, q_dim),
            f"{prefix}.self_attn.q_norm.weight": norm(head_dim),
            f"{prefix}.self_attn.k_norm.weight": norm(head_dim),
            f"{prefix}.post_attention_layernorm.weight": norm(hidden),
        }
        if layer in config["mlp_only_layers"]:
            tensors |= mlp(f"{prefix}.mlp", config["intermediate_size"])
            continue
        # A gain of 2 spreads the routing probabilities, so that bf16 noise seldom changes the experts chosen.
        tensors[f"{prefix}.mlp.gate.weight"] = matrix(config["num_experts"], hidden, gain=2.0)
        for expert in range(config["num_experts"]):
            tensors |= mlp(f"{prefix}.mlp.experts.{expert}", config["moe_intermediate_size"])
    tensors["model.norm.weight"] = norm(hidden)
    tensors["lm_head.weight"] = matrix(vocab_size, hidden, gain=2.0)
    return tensors
