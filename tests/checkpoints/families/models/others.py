"""MiniMax, gpt-oss, MiMo, Step, gemma, Mistral and Nemotron: each with an activation or a layout of its own.

Invariant: names, dtypes, key names and quirks are those of the published files; only sizes are smaller.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from checkpoints.families.family import DEEPSEEK_KEYS, UP_DOWN, W1_W3_W2, Activation, Family, Keys, Resident
from checkpoints.families.layouts import FUSED, GPT_OSS, GPT_OSS_BF16, PER_PROJECTION
from checkpoints.families.models.common import MULTIMODAL, PLAIN, SIGMOID, WRAPPED, per_expert

_MINIMAX: Final = Resident(
    router="block_sparse_moe.gate.weight",
    router_bias="block_sparse_moe.e_score_correction_bias",
)

_STEP: Final = Family(
    "Step3p7FlashForCausalLM",
    "step3p7",
    384,
    128,
    {"bf16": PER_PROJECTION, "fp8-block": PER_PROJECTION},
    layers=3,
    moe_layers=(1, 2),
    experts_path="model.layers.{n}.moe",
    keys=Keys(experts="moe_num_experts", top_k="moe_top_k"),
    resident=Resident(
        router="moe.gate.weight",
        router_bias="moe.router_bias",
        shared="share_expert",
        more={"vision_model.transformer.resblocks.0.attn.in_proj_weight": ("BF16", (96, 32))},
    ),
    activation_name=None,
    text_type="step3p5",
    text={
        "moe_layers_enum": "1,2",
        "share_expert_dim": 128,
        "swiglu_limits": [0.0, 0.0, 0.0],
        "swiglu_limits_shared": [0.0, 0.0, 16.0],
    },
)

OTHERS: Final[Mapping[str, Family]] = {
    "MiniMax-M2.1": Family(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        256,
        128,
        per_expert("fp8-block", "awq", "int4-g32"),
        experts_path="model.layers.{n}.block_sparse_moe.experts",
        modules=W1_W3_W2,
        keys=Keys(experts="num_local_experts", intermediate="intermediate_size"),
        resident=_MINIMAX,
        text={"shared_intermediate_size": 0, "scoring_func": "sigmoid", "use_routing_bias": True},
    ),
    "MiniMax-M3": Family(
        "MiniMaxM3SparseForConditionalGeneration",
        "minimax_m3_vl",
        256,
        128,
        per_expert("bf16", "mxfp8", "int4-g32-asym-mixed"),
        layers=3,
        moe_layers=(1, 2),
        experts_path="language_model.model.layers.{n}.block_sparse_moe.experts",
        modules=W1_W3_W2,
        keys=Keys(experts="num_local_experts", intermediate="intermediate_size"),
        resident=replace(
            WRAPPED,
            router="block_sparse_moe.gate.weight",
            router_bias="block_sparse_moe.e_score_correction_bias",
            shared="block_sparse_moe.shared_experts",
            more={"vision_tower.vision_model.embeddings.patch_embedding.weight": ("BF16", (8, 32))},
        ),
        activation=Activation("swigluoai", 1.702, 7.0),
        activation_name="swigluoai",
        text_type="minimax_m3",
        text={
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "dense_intermediate_size": 512,
            "shared_intermediate_size": 128,
            "moe_layer_freq": [0, 1, 1],
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.0,
        },
    ),
    "gpt-oss-120b": Family(
        "GptOssForCausalLM",
        "gpt_oss",
        # H = I, and neither a multiple of 64, as published.
        288,
        288,
        {"mxfp4-gpt-oss": GPT_OSS, "bf16": GPT_OSS_BF16},
        keys=Keys(experts="num_local_experts", intermediate="intermediate_size"),
        resident=replace(
            PLAIN,
            router="mlp.router.weight",
            router_bias="mlp.router.bias",
            more={"model.layers.{n}.self_attn.sinks": ("BF16", (8,))},
        ),
        activation=Activation("swigluoai", 1.702, 7.0),
        text={"swiglu_limit": 7.0, "experts_per_token": 2},
    ),
    "Mistral-Small-4-119B": Family(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        256,
        128,
        {"fp8-tensor-fused": FUSED},
        experts_path="language_model.model.layers.{n}.mlp.experts",
        keys=DEEPSEEK_KEYS,
        resident=replace(WRAPPED, router_bias=""),
        text_type="mistral4",
        text={"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
    ),
    "MiMo-V2-Flash": Family(
        "MiMoV2FlashForCausalLM",
        "mimo_v2_flash",
        256,
        128,
        per_expert("fp8-block"),
        layers=3,
        moe_layers=(1, 2),
        keys=DEEPSEEK_KEYS,
        resident=replace(
            SIGMOID,
            shared="",
            more={"model.mtp.layers.0.mlp.gate_proj.weight": ("F8_E4M3", (64, 64))},
        ),
        text={"moe_layer_freq": [0, 1, 1], "n_shared_experts": None, "scoring_func": "sigmoid"},
    ),
    "Step-3.7-Flash": _STEP,
    "Step-3.7-Flash, clamped layers": replace(
        _STEP,
        formats={"bf16": PER_PROJECTION},
        text=dict(_STEP.text) | {"swiglu_limits": [0.0, 0.0, 7.0]},
        activations={2: Activation("silu_clamped", 1.0, 7.0)},
    ),
    "gemma-4-26B-A4B": Family(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        256,
        704,
        {"bf16": FUSED} | per_expert("nvfp4", "fp8-channel"),
        experts_path="model.language_model.layers.{n}.experts",
        keys=Keys(top_k="top_k_experts", activation="hidden_activation"),
        resident=replace(
            MULTIMODAL,
            head="",
            router="router.proj.weight",
            shared="mlp",
            more={
                "model.language_model.layers.{n}.router.scale": ("BF16", (64,)),
                "model.language_model.layers.{n}.router.per_expert_scale": ("BF16", (4,)),
                "model.vision_tower.encoder.layers.0.mlp.gate_proj.linear.weight": ("BF16", (32, 32)),
            },
        ),
        activation=Activation("gelu_tanh"),
        activation_name="gelu_pytorch_tanh",
        text_type="gemma4_text",
        text={"enable_moe_block": True, "intermediate_size": 2112},
    ),
    "Nemotron-3-Super-120B": Family(
        "NemotronHForCausalLM",
        "nemotron_h",
        128,
        336,
        per_expert("bf16", "fp8-tensor", "nvfp4"),
        layers=4,
        moe_layers=(1, 3),
        drafts=("mtp.layers.1.mixer.experts",),
        experts_path="backbone.layers.{n}.mixer.experts",
        modules=UP_DOWN,
        keys=Keys(experts="n_routed_experts", activation="mlp_hidden_act"),
        resident=Resident(
            layer="backbone.layers.{n}",
            embedding="backbone.embeddings.weight",
            norm="backbone.norm_f.weight",
            layer_norms=("norm.weight",),
            attention=("mixer.in_proj", "mixer.out_proj"),
            router="mixer.gate.weight",
            router_bias="mixer.gate.e_score_correction_bias",
            dense="",
            shared="mixer.shared_experts",
            shared_modules=UP_DOWN,
            more={
                "backbone.layers.{n}.mixer.fc1_latent_proj.weight": ("BF16", (128, 512)),
                "backbone.layers.{n}.mixer.fc2_latent_proj.weight": ("BF16", (512, 128)),
            },
        ),
        activation=Activation("relu2"),
        activation_name="relu2",
        text={
            "hybrid_override_pattern": "MEME",
            "mamba_hidden_act": "silu",
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": 672,
            "intermediate_size": 2688,
            "num_nextn_predict_layers": 1,
        },
        model_hidden=512,
        latent_key="moe_latent_size",
    ),
}
