"""What several families share.

Invariant: data only.
"""

from typing import Final

from checkpoints.families.family import Resident
from checkpoints.families.layouts import PER_EXPERT, Layout


def per_expert(*names: str) -> dict[str, Layout]:
    return dict.fromkeys(names, PER_EXPERT)


PLAIN: Final = Resident()
MULTIMODAL: Final = Resident(
    layer="model.language_model.layers.{n}",
    embedding="model.language_model.embed_tokens.weight",
    norm="model.language_model.norm.weight",
    more={"model.visual.blocks.0.attn.qkv.weight": ("BF16", (96, 32))},
)
SIGMOID: Final = Resident(router_bias="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts")
NUMBERED_DRAFT: Final = {
    "model.layers.3.eh_proj.weight": ("BF16", (64, 128)),
    "model.layers.3.shared_head.norm.weight": ("BF16", (64,)),
}
DEEPSEEK_TEXT: Final = {
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
WRAPPED: Final = Resident(
    layer="language_model.model.layers.{n}",
    embedding="language_model.model.embed_tokens.weight",
    head="language_model.lm_head.weight",
    norm="language_model.model.norm.weight",
    router_bias="mlp.gate.e_score_correction_bias",
    shared="mlp.shared_experts",
    more={"vision_tower.encoder.blocks.0.wqkv.weight": ("BF16", (96, 32))},
)
