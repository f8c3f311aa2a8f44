import pytest

from lsg import CheckpointError
from lsg.convert.geometry import MoeGeometry

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "hidden_act": "silu",
}


def test_reads_what_the_experts_need():
    geometry = MoeGeometry.from_config(CONFIG, "config.json")
    assert geometry.architecture == "Qwen3MoeForCausalLM"
    assert (geometry.num_experts, geometry.top_k) == (128, 8)
    assert (geometry.hidden_size, geometry.intermediate_size) == (2048, 768)
    assert geometry.activation.kind == "silu"


def test_multimodal_models_nest_the_language_model():
    config = {"architectures": ["A"], "model_type": "outer", "hidden_size": 1, "text_config": CONFIG}
    geometry = MoeGeometry.from_config(config, "config.json")
    assert (geometry.architecture, geometry.model_type, geometry.hidden_size) == ("A", "outer", 2048)


@pytest.mark.parametrize("key", ["num_local_experts", "n_routed_experts"])
def test_other_spellings_of_the_number_of_experts(key):
    config = CONFIG | {"num_experts": None, key: 16}
    assert MoeGeometry.from_config(config, "config.json").num_experts == 16


def test_intermediate_size_is_the_experts_when_there_is_no_other():
    config = {name: value for name, value in CONFIG.items() if name != "moe_intermediate_size"}
    assert MoeGeometry.from_config(config, "config.json").intermediate_size == 6144


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_experts": None}, "not a mixture of experts"),
        ({"num_experts": 0}, "not a mixture of experts"),
        ({"num_experts": "many"}, "positive integer, found 'many'"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok must be a positive integer, found None"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer"),
        ({"moe_intermediate_size": True}, "moe_intermediate_size must be a positive integer"),
        ({"hidden_act": "situ"}, "activation 'situ' is not supported"),
        ({"hidden_act": None}, "activation 'None' is not supported"),
        ({"swiglu_limit": 7.0}, "activation 'silu with swiglu_limit' is not supported"),
    ],
)
def test_refuses(change, sentence):
    with pytest.raises(CheckpointError, match=sentence) as error:
        MoeGeometry.from_config(CONFIG | change, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
