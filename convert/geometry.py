"""What config.json says about the routed experts.

Invariant: holds only what the experts' files and the manifest need; everything else stays in config.json,
which is copied unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from lsg import CheckpointError
from lsg.manifest import ActivationSpec

_NUM_EXPERTS_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
_ACTIVATIONS: Final[Mapping[str, Literal["silu", "gelu_tanh"]]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class MoeGeometry:
    """Shape and activation of a model's routed experts; gate and up are [I, H], down is [H, I]."""

    architecture: str
    model_type: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    activation: ActivationSpec

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "MoeGeometry":
        """Read config.json's content; multimodal models nest it in `text_config`. Raises CheckpointError."""
        nested = config.get("text_config")
        text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
        num_experts = next((text[key] for key in _NUM_EXPERTS_KEYS if text.get(key)), None)
        if num_experts is None:
            msg = (
                f"{where}: not a mixture of experts (none of {', '.join(_NUM_EXPERTS_KEYS)} is set); "
                "serve this model with sglang directly"
            )
            raise CheckpointError(msg)
        architectures = config.get("architectures") or text.get("architectures") or [""]
        intermediate_key = "moe_intermediate_size" if "moe_intermediate_size" in text else "intermediate_size"
        return cls(
            architecture=str(architectures[0]),
            model_type=str(config.get("model_type", "")),
            num_experts=_positive(num_experts, "the number of experts", where),
            top_k=_positive(text.get("num_experts_per_tok"), "num_experts_per_tok", where),
            hidden_size=_positive(text.get("hidden_size"), "hidden_size", where),
            intermediate_size=_positive(text.get(intermediate_key), intermediate_key, where),
            activation=_activation(text, where),
        )


def _positive(value: object, name: str, where: str) -> int:
    # bool is an int to Python, but `true` is no size.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{where}: {name} must be a positive integer, found {value!r}"
        raise CheckpointError(msg)
    return value


def _activation(text: Mapping[str, Any], where: str) -> ActivationSpec:
    name = str(text.get("hidden_act"))
    if text.get("swiglu_limit") is not None:
        name = f"{name} with swiglu_limit"
    if name not in _ACTIVATIONS:
        msg = f"{where}: activation {name!r} is not supported; known are {', '.join(sorted(_ACTIVATIONS))}"
        raise CheckpointError(msg)
    return ActivationSpec(kind=_ACTIVATIONS[name], alpha=1.0, limit=0.0)
