"""Qwen: per-expert, fused and transposed experts, gated shared experts, drafts beside the layers.

Invariant: names, dtypes, key names and quirks are those of the published files; only sizes are smaller.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from checkpoints.families.family import Family
from checkpoints.families.layouts import FUSED, TRANSPOSED
from checkpoints.families.models.common import MULTIMODAL, PLAIN, per_expert

_QWEN_NEXT: Final = replace(
    PLAIN,
    attention=("linear_attn.in_proj_qkvz", "linear_attn.out_proj", "self_attn.q_proj"),
    shared="mlp.shared_expert",
    more={"model.layers.{n}.mlp.shared_expert_gate.weight": ("BF16", (1, 64))},
)
_NEXT_DRAFT: Final = {"mtp.fc.weight": ("BF16", (64, 128)), "mtp.norm.weight": ("BF16", (64,))}
_QWEN35: Final = replace(
    MULTIMODAL,
    attention=("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "self_attn.q_proj"),
    shared="mlp.shared_expert",
    more=dict(MULTIMODAL.more)
    | _NEXT_DRAFT
    | {
        "model.language_model.layers.{n}.mlp.shared_expert_gate.weight": ("BF16", (1, 64)),
        "mtp.layers.0.mlp.gate.weight": ("BF16", (4, 64)),
        "mtp.layers.0.mlp.shared_expert.gate_proj.weight": ("BF16", (32, 64)),
    },
)
_QWEN35_FAMILY: Final = Family(
    "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe",
    512,
    128,
    {"bf16": FUSED, "fp8-block-fused": FUSED} | per_expert("fp8-block", "int4-g32", "nvfp4"),
    drafts=("mtp.layers.0.mlp.experts",),
    experts_path="model.language_model.layers.{n}.mlp.experts",
    resident=_QWEN35,
    text_type="qwen3_5_moe_text",
    text={"shared_expert_intermediate_size": 128, "mtp_num_hidden_layers": 1},
)

QWEN: Final[Mapping[str, Family]] = {
    "Qwen3-Coder-Next": Family(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        512,
        128,
        per_expert("bf16", "fp8-block", "int4-g32", "nvfp4-ct"),
        resident=_QWEN_NEXT,
        text={"shared_expert_intermediate_size": 128, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "Qwen3-Next-80B-A3B": Family(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        512,
        128,
        per_expert("bf16", "fp8-block", "awq"),
        drafts=("mtp.layers.0.mlp.experts",),
        resident=replace(_QWEN_NEXT, more=dict(_QWEN_NEXT.more) | _NEXT_DRAFT),
        text={"shared_expert_intermediate_size": 128},
    ),
    "Qwen3-Coder-30B-A3B": Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        512,
        256,
        per_expert(
            *("bf16", "fp16", "fp8-block", "fp8-channel", "int4-g32", "int4-g128", "int4-g128-g-idx"),
            *(
                "int8-channel",
                "int8-g32",
                "int8-g32-asym-g-idx",
                "int8-w8a8",
                "fp8-tensor-ct",
                "awq",
                "gptq",
                "gptq-v2-asym",
                "gptq-desc-act",
                "gptq-v2-asym-desc-act",
            ),
            *("mxfp4-ct", "nvfp4", "nvfp4-ct"),
        ),
        text={"decoder_sparse_step": 1, "mlp_only_layers": [], "intermediate_size": 6144},
    ),
    "Qwen3-VL-30B-A3B": Family(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        384,
        128,
        {"bf16": TRANSPOSED, "fp8-block": TRANSPOSED} | per_expert("awq"),
        experts_path="model.language_model.layers.{n}.mlp.experts",
        resident=MULTIMODAL,
        text_type="qwen3_vl_moe_text",
        text={"intermediate_size": 6144},
    ),
    "Qwen3.5/3.6-35B-A3B": _QWEN35_FAMILY,
    "Qwen3.5-122B-A10B": replace(
        _QWEN35_FAMILY, hidden=384, formats={"bf16": FUSED} | per_expert("int4-g32")
    ),
    "Qwen3.5-397B-A17B": replace(_QWEN35_FAMILY, formats={"bf16": FUSED} | per_expert("fp8-block", "nvfp4")),
    "Qwen3.8-Flash-Next": replace(
        _QWEN35_FAMILY,
        architecture="Qwen4ExpForConditionalGeneration",
        model_type="qwen4_exp",
        # H = 4 I as published: zero points of gate and up are square.
        formats={"bf16": FUSED} | per_expert("fp8-block-bf16-scales", "int4-g32-asym-mixed", "nvfp4"),
        drafts=(),
        resident=replace(
            _QWEN35,
            more=dict(MULTIMODAL.more)
            | {
                "model.language_model.layers.{n}.mlp.shared_expert_gate.weight": ("BF16", (1, 64)),
                "model.language_model.per_layer_embedding.shards.0.weight": ("BF16", (64, 16)),
            },
        ),
        text_type="qwen4_exp_text",
    ),
}
