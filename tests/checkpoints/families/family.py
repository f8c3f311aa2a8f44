"""What tells one model family's checkpoints from another's: names, geometry, configuration.

Invariant: data only; `models.py` fills it in, `write.py` turns it into files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from checkpoints.families.layouts import Layout

GATE_UP_DOWN: Final = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
W1_W3_W2: Final = {"gate": "w1", "up": "w3", "down": "w2"}
UP_DOWN: Final = {"up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class Keys:
    """What config.json calls the sizes."""

    experts: str = "num_experts"
    intermediate: str = "moe_intermediate_size"
    top_k: str = "num_experts_per_tok"
    activation: str = "hidden_act"


DEEPSEEK_KEYS: Final = Keys(experts="n_routed_experts")


@dataclass(frozen=True)
class Resident:
    """Names of what stays; `{n}` is the layer. An empty name: the family has none."""

    layer: str = "model.layers.{n}"
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    norm: str = "model.norm.weight"
    layer_norms: tuple[str, ...] = ("input_layernorm.weight", "post_attention_layernorm.weight")
    attention: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
    )
    router: str = "mlp.gate.weight"
    router_bias: str = ""
    dense: str = "mlp"
    shared: str = ""
    shared_modules: Mapping[str, str] = field(default_factory=lambda: GATE_UP_DOWN)
    # Any other: name -> (dtype, shape); with `{n}` once for every MoE layer.
    more: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Activation:
    """As the manifest has it."""

    kind: str = "silu"
    alpha: float = 1.0
    limit: float = 0.0


@dataclass(frozen=True)
class Family:
    """A model, smaller: which of H and I is larger, and what they are no multiple of, is as published."""

    architecture: str
    model_type: str
    hidden: int
    intermediate: int
    # Name in FORMATS -> where the experts lie.
    formats: Mapping[str, Layout]
    layers: int = 2
    moe_layers: tuple[int, ...] = (0, 1)
    # Experts of draft modules beside the numbered layers, one module each.
    drafts: tuple[str, ...] = ()
    draft_experts: int = 0
    experts: int = 4
    top_k: int = 2
    experts_path: str = "model.layers.{n}.mlp.experts"
    modules: Mapping[str, str] = field(default_factory=lambda: GATE_UP_DOWN)
    keys: Keys = Keys()
    resident: Resident = Resident()
    activation: Activation = Activation()
    # Layers that have another.
    activations: Mapping[int, Activation] = field(default_factory=dict)
    # The configuration's name of the activation; None: the key is absent.
    activation_name: str | None = "silu"
    # model_type of a nested text_config; empty: the configuration is flat.
    text_type: str = ""
    quantization_in_text: bool = False
    text: Mapping[str, Any] = field(default_factory=dict)
    # hidden_size, where the experts work in a smaller space; and the key that says how small.
    model_hidden: int = 0
    latent_key: str = ""

    def activation_of(self, layer: int) -> Activation:
        """What the layer's experts compute."""
        return self.activations.get(layer, self.activation)

    @property
    def gated(self) -> bool:
        """Experts have a gate."""
        return "gate" in self.modules
