"""Configurations of small models that sglang and transformers both accept.

Invariant: keys are those of the published config.json, hidden and intermediate size, experts' names and
layouts those of `checkpoints.families`; a model is served under its published architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final

from checkpoints.families.family import Family
from checkpoints.families.models import MODELS as FAMILIES

VOCABULARY: Final = 128
EXPERTS: Final = 8


@dataclass(frozen=True)
class Servable:
    """What a family's configuration needs besides the sizes of its experts."""

    # The language model's part of config.json, without what `config` adds from the family.
    text: Mapping[str, Any]
    top: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 3
    moe_layers: tuple[int, ...] = (1, 2)
    # The model_type and architecture by which transformers knows it, where it has another name for it; its
    # tensors' names then start without `prefix`.
    known_as: tuple[str, str] = ("", "")
    prefix: str = ""
    # Of the server; gpt-oss makes its attention's parameters BF16, whatever it is asked for.
    dtype: str = "float32"
    # Changes to `text` on a GPU.
    text_on_a_gpu: Mapping[str, Any] = field(default_factory=dict)
    # Why sglang cannot serve it on a CPU, whatever computes the experts.
    not_on_a_cpu: str = ""
    # What it needs on a GPU instead of Triton's attention in a graph.
    on_a_gpu: tuple[str, ...] = ()
    # A module that sglang imports for it there.
    needs: str = ""

    def obstacle(self, *, on_a_cpu: bool) -> str:
        """Why sglang cannot serve it here, whatever computes the experts, or nothing."""
        if on_a_cpu:
            return self.not_on_a_cpu
        missing = self.needs and find_spec(self.needs) is None
        return f"sglang needs {self.needs} for it, which was not installed" if missing else ""

    def config(self, family: Family, *, on_a_gpu: bool) -> dict[str, Any]:
        """The whole config.json, without its quantisation."""
        keys = family.keys
        text = {
            "hidden_size": family.model_hidden or family.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
            keys.experts: EXPERTS,
            keys.intermediate: family.intermediate,
            keys.top_k: family.top_k,
            **self.text,
            **(self.text_on_a_gpu if on_a_gpu else {}),
        }
        if family.activation_name:
            text[keys.activation] = family.activation_name
        if family.latent_key:
            text[family.latent_key] = family.hidden
        top = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": "bfloat16"}
        if not family.text_type:
            return top | text | self.top
        return top | {"text_config": {"model_type": family.text_type} | text} | self.top


_NO_SCALING: Final = {"rope_type": "default", "rope_theta": 10000.0}
_YARN: Final = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_DEEPSEEK: Final = {
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "intermediate_size": 256,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "attention_bias": False,
}
_LATENT: Final = {
    "head_dim": 32,
    "q_lora_rank": 64,
    # With the rotated part one of the two sizes that sglang's kernels for a GPU take.
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
_VISION: Final = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "depth": 1,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_MROPE: Final = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [12, 10, 10],
    "mrope_interleaved": True,
}

_GATED_DELTA: Final = {
    "full_attention_interval": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 128,
    "intermediate_size": 256,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "partial_rotary_factor": 0.25,
}
_NO_DELTA: Final = "sgl_kernel's gated delta rule for CPUs needs AMX"
_NO_SPARSE: Final = "sglang's sparse attention asks for a CUDA device"
# sglang's Triton attention sees one token less of a window when it decodes than when it reads a prompt, as of
# 0.5.17; nobody notices in 128, but everybody would in 4. Longer than any sequence here, both see everything.
_WIDE_WINDOW: Final = {"sliding_window": 64}
_SPARSE: Final = {"index_topk": 2048, "index_n_heads": 4, "index_head_dim": 128, "num_experts": EXPERTS}
_BOTH: Final = (0, 1)
_QWEN_NEXT: Final = Servable(
    text=_GATED_DELTA | {"rope_scaling": None},
    layers=2,
    moe_layers=_BOTH,
    not_on_a_cpu=_NO_DELTA,
)


def _qwen35(hidden: int) -> Servable:
    rope = _MROPE | {"mrope_section": [4, 2, 2], "partial_rotary_factor": 0.25}
    return Servable(
        text=_GATED_DELTA | {"rope_parameters": rope, "rope_scaling": rope},
        top={"vision_config": _VISION | {"out_hidden_size": hidden}, "tie_word_embeddings": False},
        layers=2,
        moe_layers=_BOTH,
        not_on_a_cpu=_NO_DELTA,
    )


MODELS: Final[Mapping[str, Servable]] = {
    "gpt-oss-120b": Servable(
        text={
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "swiglu_limit": 7.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        text_on_a_gpu=_WIDE_WINDOW,
        layers=2,
        moe_layers=(0, 1),
        dtype="bfloat16",
    ),
    "GLM-4.7": Servable(
        text=_DEEPSEEK | {"use_qk_norm": True, "partial_rotary_factor": 0.5, "rope_scaling": None}
    ),
    "GLM-4.7-Flash": Servable(text=_DEEPSEEK | _LATENT | {"routed_scaling_factor": 1.8}),
    "Kimi-K2.5": Servable(
        text=_DEEPSEEK
        | _LATENT
        | {
            "architectures": ["DeepseekV3ForCausalLM"],
            "routed_scaling_factor": 2.827,
            "rope_scaling": _YARN,
        },
        top={
            "vision_config": {
                "vt_hidden_size": 32,
                "vt_intermediate_size": 48,
                "vt_num_attention_heads": 2,
                "vt_num_hidden_layers": 1,
                "mm_hidden_size": 32,
                "text_hidden_size": 448,
            }
        },
        known_as=("deepseek_v3", "DeepseekV3ForCausalLM"),
        prefix="language_model.",
    ),
    "Qwen3-Coder-30B-A3B": Servable(
        text={
            "intermediate_size": 256,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "rope_scaling": None,
        },
        layers=2,
        moe_layers=(0, 1),
    ),
    "Qwen3-VL-30B-A3B": Servable(
        text={
            "intermediate_size": 256,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "rope_parameters": _MROPE,
            "rope_scaling": _MROPE,
        },
        top={"vision_config": _VISION | {"out_hidden_size": 384}, "tie_word_embeddings": False},
        layers=2,
        moe_layers=(0, 1),
    ),
    "Qwen3-Coder-Next": _QWEN_NEXT,
    "Qwen3-Next-80B-A3B": _QWEN_NEXT,
    "Qwen3.5/3.6-35B-A3B": _qwen35(512),
    "Qwen3.5-122B-A10B": _qwen35(384),
    "Qwen3.5-397B-A17B": _qwen35(512),
    "GLM-4.6V": Servable(
        text=_DEEPSEEK
        | {
            "routed_scaling_factor": 1.0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 4, 4],
                "partial_rotary_factor": 0.5,
            },
        },
        top={
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "depth": 1,
                "out_hidden_size": 512,
            },
            "tie_word_embeddings": False,
        },
    ),
    "GLM-5": Servable(
        text=_DEEPSEEK | _LATENT | _SPARSE | {"rope_parameters": _NO_SCALING},
        not_on_a_cpu=_NO_SPARSE,
        needs="deep_gemm",
    ),
    "DeepSeek-V3.2": Servable(
        text=_DEEPSEEK | _LATENT | _SPARSE | {"n_group": 4, "topk_group": 2, "rope_scaling": _YARN},
        not_on_a_cpu=_NO_SPARSE,
        needs="deep_gemm",
    ),
    "MiniMax-M2.1": Servable(
        text={
            "rotary_dim": 32,
            # The same for transformers.
            "partial_rotary_factor": 0.5,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "use_qk_norm": True,
            "qk_norm_type": "per_layer",
            "shared_intermediate_size": 0,
        },
        layers=2,
        moe_layers=(0, 1),
        not_on_a_cpu="sglang's normalisation of its queries and keys needs CUDA or AMX",
    ),
    "gemma-4-26B-A4B": Servable(
        text={
            "intermediate_size": 256,
            "enable_moe_block": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 4,
            "global_head_dim": 64,
            "num_global_key_value_heads": 2,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCABULARY,
            "tie_word_embeddings": True,
        },
        text_on_a_gpu=_WIDE_WINDOW,
        top={
            "audio_config": None,
            "tie_word_embeddings": True,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "position_embedding_size": 16,
            },
        },
        layers=2,
        moe_layers=(0, 1),
        not_on_a_cpu="sglang leaves out the scale of its router on a CPU without AMX",
    ),
    "Nemotron-3-Super-120B": Servable(
        text={
            "hybrid_override_pattern": "ME*E",
            "mamba_hidden_act": "silu",
            "mamba_num_heads": 8,
            "mamba_head_dim": 64,
            "ssm_state_size": 64,
            # What sglang takes by default when it reads the published config.json, which says the same.
            "n_groups": 8,
            "conv_kernel": 4,
            "expand": 1,
            "chunk_size": 16,
            "use_conv_bias": True,
            "use_mamba_kernels": False,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": 672,
            "intermediate_size": 256,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 5.0,
            "layer_norm_epsilon": 1e-5,
            "rms_norm_eps": 1e-5,
        },
        layers=4,
        moe_layers=(1, 3),
        not_on_a_cpu="sglang's Mamba-2 kernels are Triton's",
        on_a_gpu=("--attention-backend", "torch_native", "--disable-decode-cuda-graph"),
    ),
}


def family(name: str) -> Family:
    """The family's names and layouts with the number of layers and experts that is served."""
    servable = MODELS[name]
    return replace(
        FAMILIES[name], layers=servable.layers, moe_layers=servable.moe_layers, experts=EXPERTS, drafts=()
    )
