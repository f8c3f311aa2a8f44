"""A repacked directory in the shape of a published model, of random weights, written at the disk's speed:
`python -m checkpoints.synthetic OUT`.

Invariant: a complete directory, checksums included, as lsg-convert would leave it; experts repeat, each in
bytes of its own, so that speed is a real model's and answers mean nothing.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from checkpoints.tokenizer import END_OF_TEXT, IM_END, make_tokenizer, write_tokenizer
from lsg import manifest
from lsg._core import Dtype, LayerFile, LayerSpec, PanelFormat, ScaleDtype
from lsg.runtime.bench.synthetic import LayerWriter

# Qwen3-30B-A3B's config.json.
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "use_cache": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "torch_dtype": "bfloat16",
}
# Changes to it: attention, experts and shared expert as in Qwen1.5-MoE-A2.7B, whose layers have one.
SHARED: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "moe_intermediate_size": 1408,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "shared_expert_intermediate_size": 5632,
    "norm_topk_prob": False,
}
PANEL = PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32)


def make_directory(out: Path, **changes: Any) -> Path:
    """Write the directory `out`; `changes` are to SHAPE."""
    config = SHAPE | changes
    experts = out / manifest.DIRECTORY
    experts.mkdir(parents=True)
    tokenizer = make_tokenizer()
    write_tokenizer(out, tokenizer)
    ids = {"eos_token_id": tokenizer.token_to_id(IM_END), "pad_token_id": tokenizer.token_to_id(END_OF_TEXT)}
    (out / "config.json").write_text(json.dumps(config | ids, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(ids | {"do_sample": False}) + "\n")
    with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)) // 2)) as pool:
        resident = pool.submit(
            save_file, _resident(config), out / "model.safetensors", metadata={"format": "pt"}
        )
        layers = _write_layers(experts, config, pool)
        resident.result()
    found = manifest.Manifest(
        magic=manifest.MAGIC,
        version=manifest.VERSION,
        endianness="little",
        created_by="checkpoints.synthetic",
        source=manifest.Source(model="random", revision=None, format="bf16"),
        options={"experts": "int4"},
        architecture=config["architectures"][0],
        model_type=config["model_type"],
        top_k=config["num_experts_per_tok"],
        layers=layers,
    )
    manifest.path_in(out).write_bytes(manifest.dumps(found))
    return out


def _spec(config: dict[str, Any], index: int) -> LayerSpec:
    return LayerSpec(
        layer_index=index,
        num_experts=config["num_experts"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["moe_intermediate_size"],
        gated=True,
        gate_up=PANEL,
        down=PANEL,
    )


def _write_layers(directory: Path, config: dict[str, Any], pool: ThreadPoolExecutor) -> list[manifest.Layer]:
    """All layer files: the first in full, the others its bytes behind headers of their own."""
    specs = [_spec(config, index) for index in range(config["num_hidden_layers"])]
    paths = [directory / manifest.layer_file_name(spec.layer_index) for spec in specs]
    LayerWriter(specs[0], threads=4).write(paths[0])
    list(pool.map(_copy, [paths[0]] * len(paths), paths[1:], specs[1:]))
    first = LayerFile(str(paths[0]))
    slabs = list(pool.map(first.slab_crc32c, range(config["num_experts"])))
    return [
        manifest.Layer(
            index=spec.layer_index,
            prefix=f"model.layers.{spec.layer_index}.mlp.experts",
            file=path.name,
            file_bytes=spec.file_bytes,
            num_experts=spec.num_experts,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            unit_rows=spec.unit_rows,
            gated=True,
            activation=manifest.ActivationSpec(kind="silu", alpha=1.0, limit=0.0),
            gate_up=manifest.Panel.of(PANEL),
            down=manifest.Panel.of(PANEL),
            header_crc32c=LayerFile(str(path)).header_crc32c,
            table_crc32c=first.table_crc32c(),
            slab_crc32c=slabs,
            error=None,
        )
        for path, spec in zip(paths, specs, strict=True)
    ]


def _copy(first: Path, path: Path, spec: LayerSpec) -> None:
    shutil.copyfile(first, path)
    with path.open("r+b") as file:
        file.write(spec.header())


def _resident(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Everything but routed experts, by the names of the published checkpoints."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    queries, keys = (config[name] * head_dim for name in ("num_attention_heads", "num_key_value_heads"))

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=torch.bfloat16).mul_(gain / columns**0.5).cpu()

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden, hidden**0.5),
        "model.norm.weight": ones(hidden),
        "lm_head.weight": matrix(config["vocab_size"], hidden),
    }
    shared = config.get("shared_expert_intermediate_size", 0)
    for index in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": ones(hidden),
            "post_attention_layernorm.weight": ones(hidden),
            "self_attn.q_proj.weight": matrix(queries, hidden),
            "self_attn.k_proj.weight": matrix(keys, hidden),
            "self_attn.v_proj.weight": matrix(keys, hidden),
            "self_attn.o_proj.weight": matrix(hidden, queries, 0.5),
            # Wide enough apart that tokens choose different experts.
            "mlp.gate.weight": matrix(config["num_experts"], hidden),
        }
        if shared:
            sizes = {"q": queries, "k": keys, "v": keys}
            layer |= {f"self_attn.{name}_proj.bias": 0 * ones(size) for name, size in sizes.items()}
            layer |= {
                "mlp.shared_expert.gate_proj.weight": matrix(shared, hidden),
                "mlp.shared_expert.up_proj.weight": matrix(shared, hidden),
                "mlp.shared_expert.down_proj.weight": matrix(hidden, shared, 0.5),
                "mlp.shared_expert_gate.weight": matrix(1, hidden),
            }
        else:
            layer |= {f"self_attn.{name}_norm.weight": ones(head_dim) for name in "qk"}
        tensors |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
    return tensors


def main() -> None:
    """Write one with the published model's numbers, or fewer layers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", action="store_true", help="a model whose layers have a shared expert")
    parser.add_argument("--layers", type=int, help="fewer layers than the published model's")
    options = parser.parse_args()
    changes = SHARED if options.shared else {}
    make_directory(options.out, **changes | ({"num_hidden_layers": options.layers} if options.layers else {}))


if __name__ == "__main__":
    main()
