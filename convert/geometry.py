"""What config.json says about the routed experts, and only it can say.

Invariant: holds only what the experts' files and the manifest need, and no size that the tensors' shapes
tell; everything else stays in config.json, which is copied unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lsg import CheckpointError
from lsg.manifest import ActivationSpec

_NUM_EXPERTS_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_KEYS: Final = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k")
_ACTIVATION_KEYS: Final = ("hidden_act", "hidden_activation", "mlp_hidden_act")
_NESTED_KEYS: Final = ("text_config", "llm_config", "language_config")
# gpt-oss' configuration says "silu" and means this; the constants are its reference implementation's.
_OAI_MODEL_TYPE: Final = "gpt_oss"
_OAI_ALPHA: Final = 1.702
_OAI_LIMIT: Final = 7.0
# Step's configurations name no activation: its experts have silu.
_SILU_BY_DEFAULT: Final = ("step3p5", "step3p7")


@dataclass(frozen=True)
class MoeGeometry:
    """Number, routing and activation of a model's routed experts."""

    architecture: str
    model_type: str
    num_experts: int
    top_k: int
    activation: ActivationSpec

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "MoeGeometry":
        """Read config.json's content; multimodal models nest the language model's. Raises CheckpointError."""
        nested = (config.get(key) for key in _NESTED_KEYS)
        text: Mapping[str, Any] = next((part for part in nested if isinstance(part, Mapping)), config)
        num_experts = next((text[key] for key in _NUM_EXPERTS_KEYS if text.get(key)), None)
        if num_experts is None:
            msg = (
                f"{where}: not a mixture of experts (none of {', '.join(_NUM_EXPERTS_KEYS)} is set); "
                "serve this model with sglang directly"
            )
            raise CheckpointError(msg)
        top_k_key = next((key for key in _TOP_K_KEYS if text.get(key) is not None), _TOP_K_KEYS[0])
        architectures = config.get("architectures") or text.get("architectures") or [""]
        model_type = str(config.get("model_type", ""))
        return cls(
            architecture=str(architectures[0]),
            model_type=model_type,
            num_experts=_positive(num_experts, "the number of experts", where),
            top_k=_positive(text.get(top_k_key), top_k_key, where),
            activation=_activation(text, {model_type, str(text.get("model_type", ""))}, where),
        )


def _positive(value: object, name: str, where: str) -> int:
    # bool is an int to Python, but `true` is no size.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{where}: {name} must be a positive integer, found {value!r}"
        raise CheckpointError(msg)
    return value


def _activation(text: Mapping[str, Any], model_types: set[str], where: str) -> ActivationSpec:
    name = next((text[key] for key in _ACTIVATION_KEYS if text.get(key) is not None), None)
    if name is None and model_types & set(_SILU_BY_DEFAULT):
        name = "silu"
    limit = _limit(text, where)
    if name == "swigluoai" or _OAI_MODEL_TYPE in model_types:
        alpha = float(text.get("swiglu_alpha") or _OAI_ALPHA)
        return ActivationSpec(kind="swigluoai", alpha=alpha, limit=limit or _OAI_LIMIT)
    if name in ("silu", "swish"):
        return ActivationSpec(kind="swiglu_clamped" if limit else "silu", alpha=1.0, limit=limit)
    if limit == 0.0 and name == "gelu_pytorch_tanh":
        return ActivationSpec(kind="gelu_tanh", alpha=1.0, limit=0.0)
    if limit == 0.0 and name == "relu2":
        return ActivationSpec(kind="relu2", alpha=1.0, limit=0.0)
    known = "silu, swish (both also with swiglu_limit), swigluoai, gelu_pytorch_tanh, relu2"
    clamped = " with swiglu_limit" if limit else ""
    msg = f"{where}: activation '{name}'{clamped} is not supported; known are {known}"
    raise CheckpointError(msg)


def _limit(text: Mapping[str, Any], where: str) -> float:
    """swiglu_limit, 0 for none; Step gives one for each layer."""
    found = text.get("swiglu_limits")
    limits = found if isinstance(found, list) and found else [text.get("swiglu_limit")]
    if any(not isinstance(limit, int | float | None) or (limit or 0) < 0 for limit in limits):
        msg = f"{where}: swiglu_limit must be a number or null, found {limits}"
        raise CheckpointError(msg)
    distinct = {float(limit or 0) for limit in limits}
    if len(distinct) > 1:
        values = ", ".join(f"{limit:g}" for limit in sorted(distinct))
        msg = (
            f"{where}: swiglu_limits differ between layers ({values}), but a repacked model has one "
            "activation for all of them"
        )
        raise CheckpointError(msg)
    return distinct.pop()
