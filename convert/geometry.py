"""What config.json says about the routed experts, and only it can say.

Invariant: holds only what the experts' files and the manifest need, and no size that the tensors' shapes
tell; everything else stays in config.json, which is copied unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

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
_SILU: Final = ("silu", "swish")
_SITU_KEYS: Final = ("activation_situ_beta", "activation_situ_linear_beta")


@dataclass(frozen=True)
class MoeGeometry:
    """Number, routing and activation of a model's routed experts."""

    architecture: str
    model_type: str
    num_experts: int
    top_k: int
    # One for all layers, or one for each.
    activations: tuple[ActivationSpec, ...]

    def activation_of(self, layer: int) -> ActivationSpec:
        """What a layer's experts compute. Raises CheckpointError if config.json does not say it."""
        if len(self.activations) == 1:
            return self.activations[0]
        if layer >= len(self.activations):
            msg = (
                f"config.json's swiglu_limits are {len(self.activations)}, but layer {layer} has experts too"
            )
            raise CheckpointError(msg)
        return self.activations[layer]

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
            activations=_activations(text, {model_type, str(text.get("model_type", ""))}, where),
        )


def _positive(value: object, name: str, where: str) -> int:
    # bool is an int to Python, but `true` is no size.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{where}: {name} must be a positive integer, found {value!r}"
        raise CheckpointError(msg)
    return value


def _activations(text: Mapping[str, Any], model_types: set[str], where: str) -> tuple[ActivationSpec, ...]:
    name = next((text[key] for key in _ACTIVATION_KEYS if text.get(key) is not None), None)
    if name is None and model_types & set(_SILU_BY_DEFAULT):
        name = "silu"
    limits = text.get("swiglu_limits")
    if isinstance(limits, list) and limits and name in _SILU:
        # Step's: one for each layer, and it cuts off what silu gives, not what it takes.
        return tuple(_clamped("silu_clamped", _limit(limit, where)) for limit in limits)
    limit = _limit(text.get("swiglu_limit"), where)
    if name == "swigluoai" or _OAI_MODEL_TYPE in model_types:
        alpha = float(text.get("swiglu_alpha") or _OAI_ALPHA)
        return (ActivationSpec(kind="swigluoai", alpha=alpha, limit=limit or _OAI_LIMIT),)
    if name in _SILU:
        return (_clamped("swiglu_clamped", limit),)
    if limit == 0.0 and name == "gelu_pytorch_tanh":
        return (ActivationSpec(kind="gelu_tanh", alpha=1.0, limit=0.0),)
    if limit == 0.0 and name == "relu2":
        return (ActivationSpec(kind="relu2", alpha=1.0, limit=0.0),)
    if limit == 0.0 and name == "situ":
        beta, linear_beta = (_limit(text.get(key), where, key) for key in _SITU_KEYS)
        # Without a beta the model's own code takes 1.
        return (ActivationSpec(kind="situ", alpha=beta or 1.0, limit=linear_beta),)
    known = "silu, swish (both also with swiglu_limit), swigluoai, gelu_pytorch_tanh, relu2, situ"
    clamped = " with swiglu_limit" if limit else ""
    msg = f"{where}: activation '{name}'{clamped} is not supported; known are {known}"
    raise CheckpointError(msg)


def _clamped(kind: Literal["swiglu_clamped", "silu_clamped"], limit: float) -> ActivationSpec:
    return ActivationSpec(kind=kind if limit else "silu", alpha=1.0, limit=limit)


def _limit(found: object, where: str, key: str = "swiglu_limit") -> float:
    """A limit of config.json, 0 for none."""
    if not isinstance(found, int | float | None) or isinstance(found, bool) or (found or 0) < 0:
        msg = f"{where}: {key} must be a number or null, found {found!r}"
        raise CheckpointError(msg)
    return float(found or 0)
