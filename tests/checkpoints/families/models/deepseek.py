"""DeepSeek and Kimi: FP8 and 4-bit native, short names, hash-routed layers, Engram tables.

Invariant: names, dtypes, key names and quirks are those of the published files; only sizes are smaller.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from checkpoints.families.family import DEEPSEEK_KEYS, W1_W3_W2, Activation, Family, Keys, Resident
from checkpoints.families.models.common import DEEPSEEK_TEXT, NUMBERED_DRAFT, SIGMOID, WRAPPED, per_expert

_V4: Final = Resident(
    layer="layers.{n}",
    embedding="embed.weight",
    head="head.weight",
    norm="norm.weight",
    layer_norms=("attn_norm.weight", "ffn_norm.weight"),
    attention=("attn.wq_a", "attn.wkv", "attn.wo_a"),
    router="ffn.gate.weight",
    router_bias="ffn.gate.bias",
    shared="ffn.shared_experts",
    shared_modules=W1_W3_W2,
    more={
        "layers.0.ffn.gate.tid2eid": ("I64", (64, 2)),
        "layers.{n}.hc_attn_fn": ("F32", (8, 64)),
        "mtp.0.e_proj.weight": ("F8_E4M3", (64, 64)),
    },
)
_V4_FAMILY: Final = Family(
    "DeepseekV4ForCausalLM",
    "deepseek_v4",
    256,
    128,
    per_expert("mxfp4-v4", "fp8-v4-base", "nvfp4"),
    drafts=("mtp.0.ffn.experts",),
    experts_path="layers.{n}.ffn.experts",
    modules=W1_W3_W2,
    keys=DEEPSEEK_KEYS,
    resident=_V4,
    activation=Activation("swiglu_clamped", 1.0, 10.0),
    text={
        "swiglu_limit": 10.0,
        "num_hash_layers": 1,
        "num_nextn_predict_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "expert_dtype": "fp4",
        "n_shared_experts": 1,
    },
)

DEEPSEEK: Final[Mapping[str, Family]] = {
    "Kimi-K2.5": Family(
        "KimiK25ForConditionalGeneration",
        "kimi_k25",
        448,
        128,
        per_expert("int4-g32-native"),
        moe_layers=(1,),
        experts_path="language_model.model.layers.{n}.mlp.experts",
        keys=DEEPSEEK_KEYS,
        resident=WRAPPED,
        text_type="kimi_k2",
        quantization_in_text=True,
        text=dict(DEEPSEEK_TEXT) | {"num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827},
    ),
    "Kimi-K3": Family(
        "KimiK3ForConditionalGeneration",
        "kimi_k3",
        128,
        96,
        per_expert("mxfp4-ct"),
        moe_layers=(1,),
        experts_path="language_model.model.layers.{n}.block_sparse_moe.experts",
        modules=W1_W3_W2,
        keys=Keys(top_k="num_experts_per_token"),
        resident=replace(
            WRAPPED,
            router="block_sparse_moe.gate.weight",
            router_bias="block_sparse_moe.gate.e_score_correction_bias",
            shared="block_sparse_moe.shared_experts",
        ),
        activation=Activation("situ", 4.0, 25.0),
        activation_name="situ",
        text_type="kimi_linear",
        text={
            "activation_situ_beta": 4.0,
            "activation_situ_linear_beta": 25.0,
            "num_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
        model_hidden=256,
        latent_key="routed_expert_hidden_size",
    ),
    "DeepSeek-V3.2": Family(
        "DeepseekV32ForCausalLM",
        "deepseek_v32",
        384,
        128,
        per_expert("fp8-block-ue8m0", "awq", "nvfp4"),
        layers=3,
        moe_layers=(1, 2, 3),
        keys=DEEPSEEK_KEYS,
        resident=replace(SIGMOID, more=NUMBERED_DRAFT),
        text=dict(DEEPSEEK_TEXT) | {"n_group": 8, "topk_group": 4, "moe_layer_freq": 1},
    ),
    "DeepSeek-V4-Flash": _V4_FAMILY,
    "DeepSeek-V4-Pro": replace(_V4_FAMILY, hidden=448, intermediate=192, formats=per_expert("mxfp4-v4")),
    "DeepSeek-V4.1-Flash": replace(
        _V4_FAMILY,
        architecture="DeepseekV41ForCausalLM",
        model_type="deepseek_v41",
        hidden=320,
        intermediate=160,
        formats=per_expert("mxfp4-v4.1", "fp8-v4.1-base"),
        # The draft head has fewer experts than the model.
        draft_experts=2,
        resident=replace(
            _V4,
            more=dict(_V4.more)
            | {
                "engram.0.table.weight": ("F8_E4M3", (64, 256)),
                "engram.0.table.scale": ("F8_E8M0", (64, 8)),
            },
        ),
    ),
}
