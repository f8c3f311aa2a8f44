"""A layer's experts as sglang's blocks call them, on a CPU and inside a captured graph.

On the CPU path tensors are computed where they lie; on the GPU path they claim to be on a GPU, a stream is
capturing, and copies, kernels and signals are those of the stand-in for the driver.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from integration.repack import convert

from checkpoints import make_checkpoint
from lsg import CompatError, _core
from lsg.runtime import engine as runtime_engine
from lsg.runtime import hand_over, host, settings
from lsg.runtime.model import open_model

HIDDEN, EXPERTS, TOP_K, MOST = 64, 8, 2, 128
SCALE = 2.5
FORMATS = ("bf16", "int4")
# Levels above take more than four tokens an expert for a prompt, whose bits depend on the batch.
ISA = [level for level in _core.isa_levels() if level.value <= _core.Isa.VNNI.value][-1].name.lower()


class OnGpu(torch.Tensor):
    """A tensor in the stand-in's GPU memory, which is the host's."""

    is_cuda = True

    @property
    def device(self):
        """Where sglang believes it is."""
        return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def experts(sglang_import):
    return sglang_import("lsg.runtime.sglang.experts")


@pytest.fixture(scope="module")
def topk(sglang_import):
    return sglang_import("sglang.srt.layers.moe.topk")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Ten units of 32 neurons: enough tasks for two workers to share a batch in many ways."""
    root = tmp_path_factory.mktemp("plugin")
    source = make_checkpoint(
        root / "checkpoint", layers=1, hidden=HIDDEN, intermediate=320, experts=EXPERTS, top_k=TOP_K
    )
    return {kind: convert(source, root / kind, kind) for kind in FORMATS}


@pytest.fixture(params=["CPU", *settings.HAND_OVERS])
def path(request):
    return request.param


def runner_config(**changes):
    plain = {"activation": "silu", "is_gated": True, "top_k": TOP_K, "routed_scaling_factor": None}
    off = dict.fromkeys(("apply_router_weight_on_input", "no_combine"), False)
    limits = dict.fromkeys(("gemm1_alpha", "gemm1_clamp_limit", "swiglu_limit"))
    return SimpleNamespace(**plain | off | limits | changes)


def layer(**changes):
    plain = {"layer_id": 0, "moe_tp_rank": 0, "moe_tp_size": 1, "moe_ep_size": 1}
    return SimpleNamespace(**plain | {"num_fused_shared_experts": 0} | changes)


@pytest.fixture
def served(path, directory, experts, topk, library, streams, monkeypatch):
    """A function: a format's layer, as a function of hidden states, ids and weights."""

    def serve(kind, **config):
        model = open_model(directory[kind])
        method = experts.OffloadedExperts(model, layer(), 0, on_cpu=path == "CPU")
        method.create_moe_runner(layer(), runner_config(**config))
        chosen = settings.Settings(isa=ISA, threads=2, hand_over=path if path != "CPU" else "kernels")
        engine = runtime_engine.ExpertEngine(model, chosen, host.flat(2, 1 << 40))
        method.attach(engine, engine.load([0])[0])
        put = (lambda tensor: tensor) if path == "CPU" else _graphs(engine, library, streams(), monkeypatch)

        def run(hidden, ids, weights):
            routing = topk.StandardTopKOutput(put(weights), put(ids), put(torch.zeros(len(ids), EXPERTS)))
            dispatched = SimpleNamespace(hidden_states=put(hidden), topk_output=routing)
            return method.apply(layer(), dispatched).hidden_states.as_subclass(torch.Tensor)

        return run

    return serve


def _graphs(engine, library, stream, monkeypatch):
    """Let the engine believe that it is captured; returns what puts a tensor onto the stand-in's GPU."""
    monkeypatch.setattr(_core, "HandOver", partial(_core.HandOver, library=str(library)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    current = SimpleNamespace(cuda_stream=stream.address)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    submit = hand_over.HandOver.submit

    def submit_and_replay(self, *arguments):
        out = []
        graph = stream.capture(lambda _: out.append(submit(self, *arguments)))
        # What torch computes after this is not on the stand-in's stream: let that come to its end first.
        stream.replay(graph)
        assert stream.wait()
        return out[0]

    monkeypatch.setattr(hand_over.HandOver, "submit", submit_and_replay)
    # There is no GPU to wait for when the process ends.
    monkeypatch.setattr(hand_over, "atexit", SimpleNamespace(register=lambda function: None))
    engine.allow_graphs(pytest.fail)
    return lambda tensor: tensor.as_subclass(OnGpu)


def batch(tokens, seed=0):
    """Hidden states, ids and weights of a batch in bf16."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(tokens)])
    return hidden, ids.int(), torch.rand(tokens, TOP_K, generator=generator)


def test_routed_scaling_factor(served, path):
    """On a GPU sglang's own runners scale the sum; on a CPU the model's code does, and once is enough."""
    given = batch(5)
    once, scaled = served("bf16")(*given), served("bf16", routed_scaling_factor=SCALE)(*given)
    assert once.abs().max() > 0.1
    torch.testing.assert_close(scaled, once if path == "CPU" else once * SCALE, rtol=0, atol=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_ids_of_minus_one_are_no_expert(served, kind):
    """Padding rows of a graph have only such ids; a rank of expert parallelism would have some."""
    hidden, ids, weights = batch(6)
    run, none = served(kind), ids.clone()
    none[1], none[3, 0], none[5, 1] = -1, -1, -1
    out = run(hidden, none, weights)
    assert out[1].eq(0).all()
    whole = run(hidden, ids, weights)
    assert torch.equal(out[[0, 2, 4]], whole[[0, 2, 4]])
    alone = run(hidden[3:4], ids[3:4, [1, 1]], torch.tensor([[weights[3, 1], 0.0]]))
    assert torch.equal(out[3:4], alone)


def test_an_idle_rank_has_nothing_to_compute(served):
    """Data-parallel attention calls the layer on every rank, also where no request is."""
    run, given = served("bf16", routed_scaling_factor=SCALE), batch(3)
    before = run(*given)
    assert run(*(tensor[:0] for tensor in given)).shape == (0, HIDDEN)
    assert torch.equal(run(*given), before)


def test_no_combine_is_refused(served):
    with pytest.raises(CompatError, match="sglang asks for no_combine, which lsg's experts cannot do"):
        served("bf16", no_combine=True)


def test_fused_shared_experts_are_refused(directory, experts, path):
    with pytest.raises(CompatError, match="add --disable-shared-experts-fusion"):
        experts.OffloadedExperts(
            open_model(directory["bf16"]), layer(num_fused_shared_experts=1), 0, on_cpu=path == "CPU"
        )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [2, 7, 64, MOST])
def test_a_token_among_others_as_alone(served, kind, tokens):
    """Bit by bit: what a request gets does not depend on whose requests are decoded with it."""
    hidden, ids, weights = batch(tokens)
    run = served(kind)
    together = run(hidden, ids, weights)
    alone = torch.cat([run(hidden[n : n + 1], ids[n : n + 1], weights[n : n + 1]) for n in range(tokens)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("path", ["CPU"], indirect=True)
def test_a_prompts_token_in_any_longer_batch(served, kind):
    """Longer batches sum in another order than decoded ones, all of them in the same; none is captured."""
    hidden, ids, weights = batch(700)
    run = served(kind)
    whole = run(hidden, ids, weights)
    assert torch.equal(run(hidden[300:], ids[300:], weights[300:]), whole[300:])
    assert torch.equal(run(hidden[:129], ids[:129], weights[:129]), whole[:129])
