"""GLM: a draft numbered like a layer, dense first layers, multimodal variants.

Invariant: names, dtypes, key names and quirks are those of the published files; only sizes are smaller.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from checkpoints.families.family import DEEPSEEK_KEYS, Activation, Family
from checkpoints.families.models.common import DEEPSEEK_TEXT, MULTIMODAL, NUMBERED_DRAFT, SIGMOID, per_expert

_GLM47: Final = Family(
    "Glm4MoeForCausalLM",
    "glm4_moe",
    640,
    192,
    per_expert("bf16", "fp8-channel", "int4-g32-mixed"),
    layers=3,
    moe_layers=(1, 2, 3),
    keys=DEEPSEEK_KEYS,
    resident=replace(SIGMOID, more=NUMBERED_DRAFT),
    text=DEEPSEEK_TEXT,
)

GLM: Final[Mapping[str, Family]] = {
    "GLM-4.7": _GLM47,
    "GLM-4.7-Flash": replace(
        _GLM47,
        architecture="Glm4MoeLiteForCausalLM",
        model_type="glm4_moe_lite",
        hidden=256,
        intermediate=192,
        formats=per_expert("bf16", "int4-g32"),
        text=dict(DEEPSEEK_TEXT) | {"routed_scaling_factor": 1.8},
    ),
    "GLM-4.6V": replace(
        _GLM47,
        architecture="Glm4vMoeForConditionalGeneration",
        model_type="glm4v_moe",
        hidden=512,
        intermediate=176,
        formats=per_expert("bf16", "fp8-channel"),
        moe_layers=(1, 2),
        experts_path="model.language_model.layers.{n}.mlp.experts",
        resident=replace(
            MULTIMODAL, router_bias="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts"
        ),
        text_type="glm4v_moe_text",
        text=dict(DEEPSEEK_TEXT) | {"num_nextn_predict_layers": 0, "routed_scaling_factor": 1.0},
    ),
    "GLM-5": replace(
        _GLM47,
        architecture="GlmMoeDsaForCausalLM",
        model_type="glm_moe_dsa",
        hidden=384,
        intermediate=128,
        formats=per_expert("bf16", "fp8-block", "nvfp4"),
    ),
    "GLM-5.3-Flash": replace(
        _GLM47,
        architecture="Glm5NextForConditionalGeneration",
        model_type="glm5_next",
        hidden=256,
        intermediate=128,
        formats=per_expert("bf16", "fp8-block", "int4-g32-asym-mixed", "nvfp4"),
        moe_layers=(1, 2),
        experts_path="model.language_model.layers.{n}.mlp.experts",
        resident=replace(
            MULTIMODAL, router_bias="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts"
        ),
        activation=Activation("swiglu_clamped", 1.0, 10.0),
        text_type="glm5_next_text",
        text=dict(DEEPSEEK_TEXT) | {"swiglu_limit": 10.0, "num_nextn_predict_layers": 0},
    ),
}
