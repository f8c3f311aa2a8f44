"""config.json as the family publishes it.

Invariant: sizes are those of the tensors; of the experts' encoding it says what the repository would say,
true or not.
"""

from typing import Any

from checkpoints.families.family import Family
from checkpoints.families.formats import Format


def make_config(family: Family, form: Format) -> dict[str, Any]:
    """The whole file."""
    keys = family.keys
    text: dict[str, Any] = {
        "hidden_size": family.model_hidden or family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": not family.resident.head,
        keys.experts: family.experts,
        keys.intermediate: family.intermediate,
        keys.top_k: family.top_k,
        **family.text,
    }
    if family.activation_name:
        text[keys.activation] = family.activation_name
    if family.latent_key:
        text[family.latent_key] = family.hidden
    quantization = {} if form.quantization is None else {"quantization_config": dict(form.quantization)}
    if family.quantization_in_text:
        text |= quantization
        quantization = {}
    top = {"architectures": [family.architecture], "model_type": family.model_type, "torch_dtype": "bfloat16"}
    if not family.text_type:
        return top | text | quantization
    # The vision tower has sizes of its own under the same names.
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "hidden_act": "gelu"}
    nested = text | {"model_type": family.text_type}
    return top | {"text_config": nested, "vision_config": vision} | quantization
