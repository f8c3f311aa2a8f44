import pytest

from lsg import CheckpointError
from lsg.convert.geometry import MoeGeometry
from lsg.manifest import ActivationSpec

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "hidden_act": "silu",
}
WITHOUT_ACTIVATION = {key: value for key, value in CONFIG.items() if key != "hidden_act"}


def read(config):
    return MoeGeometry.from_config(config, "config.json")


def test_reads_what_the_experts_need():
    geometry = MoeGeometry.from_config(CONFIG, "config.json")
    assert geometry.architecture == "Qwen3MoeForCausalLM"
    assert (geometry.num_experts, geometry.top_k) == (128, 8)
    assert geometry.activation_of(7) == ActivationSpec(kind="silu", alpha=1.0, limit=0.0)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_multimodal_models_nest_the_language_model(key):
    geometry = read({"architectures": ["A"], "model_type": "outer", "num_experts": 1, key: CONFIG})
    assert (geometry.architecture, geometry.model_type, geometry.num_experts) == ("A", "outer", 128)


@pytest.mark.parametrize("key", ["num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_other_spellings_of_the_number_of_experts(key):
    assert read(CONFIG | {"num_experts": None, key: 16}).num_experts == 16


@pytest.mark.parametrize("key", ["num_experts_per_token", "top_k_experts", "moe_top_k"])
def test_other_spellings_of_top_k(key):
    assert read(CONFIG | {"num_experts_per_tok": None, key: 3}).top_k == 3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_act": "swish"}, ("silu", 1.0, 0.0)),
        ({"hidden_act": "silu", "swiglu_limit": None}, ("silu", 1.0, 0.0)),
        ({"hidden_act": "silu", "swiglu_limit": 10.0}, ("swiglu_clamped", 1.0, 10.0)),
        ({"model_type": "step3p5", "swiglu_limits": [0.0, None]}, ("silu", 1.0, 0.0)),
        (
            {"model_type": "outer", "text_config": WITHOUT_ACTIVATION | {"model_type": "step3p5"}},
            ("silu", 1.0, 0.0),
        ),
        ({"hidden_activation": "gelu_pytorch_tanh"}, ("gelu_tanh", 1.0, 0.0)),
        ({"mlp_hidden_act": "relu2"}, ("relu2", 1.0, 0.0)),
        ({"hidden_act": "swigluoai", "swiglu_alpha": 1.5, "swiglu_limit": 6.0}, ("swigluoai", 1.5, 6.0)),
        ({"hidden_act": "swigluoai"}, ("swigluoai", 1.702, 7.0)),
        ({"model_type": "gpt_oss", "hidden_act": "silu", "swiglu_limit": 7.0}, ("swigluoai", 1.702, 7.0)),
        (
            {"hidden_act": "situ", "activation_situ_beta": 4, "activation_situ_linear_beta": 25.0},
            ("situ", 4.0, 25.0),
        ),
        ({"hidden_act": "situ"}, ("situ", 1.0, 0.0)),
    ],
)
def test_activations(config, expected):
    kind, alpha, limit = expected
    found = read(WITHOUT_ACTIVATION | config).activation_of(0)
    assert found == ActivationSpec(kind=kind, alpha=alpha, limit=limit)


def test_layers_may_clamp_differently():
    """What silu gives, not what it takes, and a layer without an entry is not guessed."""
    geometry = read(CONFIG | {"swiglu_limits": [None, 0.0, 7]})
    found = [geometry.activation_of(layer) for layer in range(3)]
    assert [(spec.kind, spec.limit) for spec in found] == [("silu", 0), ("silu", 0), ("silu_clamped", 7)]
    with pytest.raises(CheckpointError, match="swiglu_limits are 3, but layer 3 has experts too"):
        geometry.activation_of(3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_experts": None}, "not a mixture of experts"),
        ({"num_experts": 0}, "not a mixture of experts"),
        ({"num_experts": "many"}, "positive integer, found 'many'"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok must be a positive integer, found None"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok must be a positive integer, found True"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"hidden_act": "situ", "activation_situ_beta": "4"}, "activation_situ_beta must be a number"),
        ({"hidden_act": None}, "activation 'None' is not supported"),
        (
            {"hidden_act": "relu2", "swiglu_limit": 7.0},
            "activation 'relu2' with swiglu_limit is not supported",
        ),
        ({"swiglu_limit": "7"}, "swiglu_limit must be a number or null, found"),
        ({"swiglu_limits": [0.0, True]}, "swiglu_limit must be a number or null, found True"),
    ],
)
def test_refuses(change, sentence):
    with pytest.raises(CheckpointError, match=sentence) as error:
        MoeGeometry.from_config(CONFIG | change, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
