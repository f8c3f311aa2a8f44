import json
from types import SimpleNamespace

import pytest
import torch

from lsg import CompatError
from lsg.runtime.model import open_model


@pytest.fixture(scope="module")
def experts(sglang_import):
    return sglang_import("lsg.runtime.sglang.experts")


@pytest.fixture(scope="module")
def topk(sglang_import):
    return sglang_import("sglang.srt.layers.moe.topk")


@pytest.fixture
def model(repacked):
    return open_model(repacked)


def layer(**changes):
    defaults = {
        "layer_id": 1,
        "moe_tp_rank": 0,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
        "num_fused_shared_experts": 0,
    }
    return SimpleNamespace(**defaults | changes)


def runner_config(**changes):
    defaults = {
        "activation": "silu",
        "is_gated": True,
        "top_k": 2,
        "apply_router_weight_on_input": False,
        "no_combine": False,
        "routed_scaling_factor": None,
        "gemm1_alpha": None,
        "gemm1_clamp_limit": None,
        "swiglu_limit": None,
    }
    return SimpleNamespace(**defaults | changes)


def runner(**changes):
    plain = {"device": "cpu", "nnodes": 1, "pp_size": 1, "dp_size": 1, "enable_dp_attention": False}
    server_args = SimpleNamespace(**plain | {"base_gpu_id": 0, "gpu_id_step": 1} | changes)
    return SimpleNamespace(is_draft_worker=False, draft_model_idx=None, server_args=server_args, gpu_id=0)


class Engine:
    """Records what it is asked and answers with ones."""

    def forward(self, handle, hidden, ids, weights):
        self.asked = handle, hidden, ids, weights
        return torch.ones_like(hidden)


@pytest.mark.parametrize(
    ("config", "kind", "alpha", "limit"),
    [
        (runner_config(), "silu", 1.0, 0.0),
        (runner_config(swiglu_limit=10.0), "swiglu_clamped", 1.0, 10.0),
        (runner_config(gemm1_clamp_limit=7.0), "silu_clamped", 1.0, 7.0),
        (runner_config(gemm1_alpha=1.702, gemm1_clamp_limit=7.0), "swigluoai", 1.702, 7.0),
        (runner_config(activation="gelu"), "gelu_tanh", 1.0, 0.0),
        (runner_config(activation="relu2", is_gated=False), "relu2", 1.0, 0.0),
        (
            runner_config(activation="situ", gemm1_alpha=4.0, gemm1_clamp_limit=25.0),
            *("situ", 4.0, 25.0),
        ),
        (runner_config(activation="situ"), "situ", 4.0, 0.0),
    ],
)
def test_activations(config, kind, alpha, limit, experts):
    found = experts.activation_of(config)
    assert (found.kind, found.alpha, found.limit) == (kind, alpha, limit)


def test_an_unknown_activation_is_refused(experts):
    with pytest.raises(CompatError, match="'mish'"):
        experts.activation_of(runner_config(activation="mish"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe_ep_size": 2}, "--tp-size"),
        ({"num_fused_shared_experts": 1}, "--disable-shared-experts-fusion"),
    ],
)
def test_layers_that_cannot_be_offloaded(changes, words, experts, model):
    with pytest.raises(CompatError, match=words):
        experts.OffloadedExperts(model, layer(**changes), 1, on_cpu=True)


@pytest.mark.parametrize(("resolved", "plain"), [("TRITON", True), ("AUTO", True), ("TRITON_KERNELS", False)])
def test_layers_built_for_kernels_of_sglangs_are_refused(resolved, plain, experts, model, monkeypatch):
    """On a CPU sglang resolves it all the same, and ignores it."""
    backends = experts.get_moe_runner_backend().__class__
    monkeypatch.setattr(experts, "get_moe_runner_backend", lambda: backends[resolved])
    experts.OffloadedExperts(model, layer(), 1, on_cpu=True)
    if plain:
        experts.OffloadedExperts(model, layer(), 1, on_cpu=False)
        return
    with pytest.raises(CompatError, match=r"layer 1: .* triton_kernel.* choose --moe-runner-backend triton"):
        experts.OffloadedExperts(model, layer(), 1, on_cpu=False)


@pytest.mark.parametrize(
    ("geometry", "name"),
    [((5, 64, 48), "num_experts"), ((4, 128, 48), "hidden_size"), ((4, 64, 96), "intermediate_size")],
)
def test_another_geometry_is_refused(geometry, name, experts, model):
    method = experts.OffloadedExperts(model, layer(), 1, on_cpu=True)
    with pytest.raises(CompatError, match=rf"layer 1: sglang builds it with {name} = \d+, the manifest says"):
        method.create_weights(torch.nn.Module(), *geometry, torch.bfloat16)


@pytest.mark.parametrize(
    ("on_cpu", "tp_size", "per_partition"), [(False, 1, 48), (False, 2, 24), (True, 1, 64), (True, 2, 32)]
)
def test_the_same_geometry_creates_no_parameters(on_cpu, tp_size, per_partition, experts, model):
    method = experts.OffloadedExperts(model, layer(moe_tp_size=tp_size), 1, on_cpu=on_cpu)
    module = torch.nn.Module()
    method.create_weights(module, 4, 64, per_partition, torch.bfloat16, weight_loader=None)
    assert not list(module.parameters())
    assert not list(module.buffers())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 3}, "top_k = 3, the manifest says 2"),
        ({"is_gated": False}, "is_gated = False"),
        ({"swiglu_limit": 7.0}, "activation = swiglu_clamped limit 7.0, the manifest says silu"),
        ({"no_combine": True}, "no_combine"),
        ({"apply_router_weight_on_input": True}, "apply_router_weight_on_input"),
    ],
)
def test_another_computation_is_refused(changes, words, experts, model):
    method = experts.OffloadedExperts(model, layer(), 1, on_cpu=True)
    with pytest.raises(CompatError, match=words):
        method.create_moe_runner(layer(), runner_config(**changes))


@pytest.fixture
def method(experts, model):
    method = experts.OffloadedExperts(model, layer(), 1, on_cpu=True)
    # On a CPU the model's own code applies this factor; applying it here would square it.
    method.create_moe_runner(layer(), runner_config(routed_scaling_factor=2.5))
    return method


def test_apply_hands_over_standard_routing(method, topk):
    engine = Engine()
    method.attach(engine, 7)
    hidden, ids, weights = torch.zeros(3, 64), torch.full((3, 2), -1), torch.zeros(3, 2)
    routing = topk.StandardTopKOutput(topk_weights=weights, topk_ids=ids, router_logits=torch.zeros(3, 4))
    result = method.apply(layer(), SimpleNamespace(hidden_states=hidden, topk_output=routing))
    assert result.hidden_states.eq(1).all()
    assert engine.asked[0] == 7
    assert all(given is asked for given, asked in zip((hidden, ids, weights), engine.asked[1:], strict=True))


def test_apply_computes_routing_that_was_left_to_the_kernel(method, topk, monkeypatch):
    engine = Engine()
    method.attach(engine, 7)
    ids = torch.tensor([[1, 0]])
    routing = topk.StandardTopKOutput(torch.ones(1, 2), ids, torch.zeros(1, 4))
    bypassed = topk.BypassedTopKOutput(torch.zeros(1, 64), torch.zeros(1, 4), None)
    monkeypatch.setattr(topk.BypassedTopKOutput, "to_standard", lambda self, layer_id: routing)
    method.apply(layer(), SimpleNamespace(hidden_states=torch.zeros(1, 64), topk_output=bypassed))
    assert engine.asked[2] is ids


def test_apply_refuses_other_routing(method):
    method.attach(Engine(), 7)
    with pytest.raises(CompatError, match="--moe-runner-backend"):
        method.apply(layer(), SimpleNamespace(hidden_states=torch.zeros(1, 64), topk_output=object()))


def test_apply_before_the_experts_are_there(method, topk):
    routing = topk.StandardTopKOutput(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 4))
    with pytest.raises(CompatError, match="before its experts were mapped"):
        method.apply(layer(), SimpleNamespace(hidden_states=torch.zeros(1, 64), topk_output=routing))


def test_a_layer_that_escaped_is_noticed(experts, repacked):
    offload = experts.Offload(repacked, runner())
    offload.get_quant_method(layer(), "")
    escaped = experts.FusedMoE.__new__(experts.FusedMoE)
    torch.nn.Module.__init__(escaped)
    escaped.quant_method = object()
    with pytest.raises(CompatError, match=r"sglang would compute the experts of 0 itself"):
        offload.finish(torch.nn.Sequential(escaped))


@pytest.mark.parametrize(
    ("gpu", "rank", "process"), [(4, 0, 0), (5, 1, 1), (6, 0, 2), (7, 1, 3)], ids=lambda value: str(value)
)
def test_data_parallel_replicas_are_told_apart(experts, repacked, monkeypatch, gpu, rank, process):
    """Two replicas of two tensor-parallel processes each, from the fifth GPU on."""
    asked = {}
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)

    def process_engine(model, settings, host, **places):
        asked.update(places, load=settings.load)
        raise InterruptedError

    monkeypatch.setattr(experts, "process_engine", process_engine)
    here = runner(dp_size=2, base_gpu_id=4)
    here.gpu_id = gpu
    offload = experts.Offload(repacked, here)
    offload.get_quant_method(layer(moe_tp_rank=rank, moe_tp_size=2), "")
    with pytest.raises(InterruptedError):
        offload.finish(torch.nn.Sequential())
    assert asked == {"process": process, "processes": 4, "replicas": 2, "load": "map"}


@pytest.fixture
def drafting():
    draft = runner()
    draft.is_draft_worker = True
    return draft


def test_a_layer_that_was_not_converted_is_noticed(experts, repacked):
    with pytest.raises(CompatError, match="routed experts in layer 5, the directory only in layers 0 to 1"):
        experts.Offload(repacked, runner()).get_quant_method(layer(layer_id=5), "")


@pytest.mark.parametrize("text", [False, True], ids=["plain", "text_config"])
def test_a_drafts_layer_is_the_one_after_the_models_own(experts, spoilt, drafting, text):
    """sglang numbers it 0; its experts were converted with the model's."""
    path = spoilt / "config.json"
    config = json.loads(path.read_text()) | {"num_hidden_layers": 1}
    path.write_text(json.dumps({"text_config": config} if text else config))
    offload = experts.Offload(spoilt, drafting)
    assert not offload.resident
    assert offload.get_quant_method(layer(layer_id=0), "").layer_id == 1
    assert experts.Offload(spoilt, runner()).get_quant_method(layer(layer_id=0), "").layer_id == 0


def test_a_draft_whose_experts_were_not_converted_is_sglangs(experts, repacked, drafting):
    assert experts.Offload(repacked, drafting).resident


def test_a_pipeline_stage_may_have_no_experts(experts, repacked):
    experts.Offload(repacked, runner(pp_size=2)).finish(torch.nn.Sequential())


def test_a_model_without_any_layer_is_noticed(experts, repacked):
    with pytest.raises(CompatError, match="without a single layer"):
        experts.Offload(repacked, runner()).finish(torch.nn.Sequential())


def test_switched_off_is_refused(experts, repacked, monkeypatch):
    monkeypatch.setenv("LVLLM_MOE_NUMA_ENABLED", "0")
    with pytest.raises(CompatError, match="--no-hybrid"):
        experts.Offload(repacked, runner())
