import json

import numpy as np
import pytest
import torch
from integration.reference import decode
from integration.repack import convert

from lsg import CompatError, LsgError
from lsg._core import LayerFile, unpack_expert
from lsg.runtime import engine as engine_module
from lsg.runtime import host
from lsg.runtime.engine import ExpertEngine, process_engine
from lsg.runtime.model import open_model
from lsg.runtime.settings import Settings

TOKENS, HIDDEN, TOP_K, EXPERTS = 5, 64, 2, 4
# float32 sums of HIDDEN and INTERMEDIATE terms of size about one, in another order than numpy's float64.
F32_TOLERANCE = 64 * 2.0**-24 * 8


@pytest.fixture(scope="module")
def model(checkpoint):
    return open_model(convert(checkpoint, checkpoint.parent / "bf16", "bf16"))


@pytest.fixture(scope="module")
def engine(model):
    return ExpertEngine(model, Settings(threads=1, activations="float"), host.observe())


@pytest.fixture(scope="module")
def handle(engine):
    return engine.load([0, 1])[1]


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    scores = torch.rand(TOKENS, EXPERTS, generator=generator)
    ids = scores.topk(TOP_K).indices.to(torch.int32)
    return hidden, ids, torch.rand(TOKENS, TOP_K, generator=generator)


def expected(model, hidden, ids, weights):
    """Layer 1's experts in float64 by numpy."""
    layer = model.layer(1)
    file = LayerFile(str(model.path_of(layer)))
    out = np.zeros(hidden.shape)
    for token, choices in enumerate(ids.tolist()):
        for choice, expert in enumerate(choices):
            if expert < 0:
                continue
            matrices = unpack_expert(file.spec, file.expert(expert))
            gate, up, down = (decode(matrix, layer.down).astype(np.float64) for matrix in matrices)
            x = hidden[token].double().numpy()
            gated = gate @ x
            inner = gated / (1 + np.exp(-gated)) * (up @ x)
            out[token] += float(weights[token, choice]) * (down @ inner)
    return torch.from_numpy(out)


def assert_near(out, reference, roundoff=0.0):
    scale = float(reference.abs().max())
    torch.testing.assert_close(out.double(), reference, rtol=roundoff, atol=F32_TOLERANCE * scale)


def test_against_float64(engine, handle, model, batch):
    assert_near(engine.forward(handle, *batch), expected(model, *batch))


@pytest.mark.parametrize(("dtype", "roundoff"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_half_precision_rounds_the_result_once(dtype, roundoff, engine, handle, model, batch):
    hidden, ids, weights = batch
    hidden = hidden.to(dtype)
    out = engine.forward(handle, hidden, ids, weights)
    assert out.dtype == dtype
    assert_near(out, expected(model, hidden.float(), ids, weights), roundoff)


def test_padding_ids_and_any_layout_of_the_inputs(engine, handle, model, batch):
    hidden, ids, weights = batch
    ids = ids.clone()
    ids[0, 1] = ids[3, 0] = ids[3, 1] = -1
    wide = torch.stack([hidden, hidden], -1)[..., 0]
    assert not wide.is_contiguous()
    out = engine.forward(handle, wide, ids.to(torch.int64), weights.double())
    assert_near(out, expected(model, hidden, ids, weights))
    assert not out[3].any()


def test_no_tokens(engine, handle, batch):
    hidden, ids, weights = batch
    assert engine.forward(handle, hidden[:0], ids[:0], weights[:0]).shape == (0, HIDDEN)


def test_ranks_add_up_to_the_whole(engine, model, batch):
    parts = [engine.load([1], rank=rank, ranks=2)[1] for rank in range(2)]
    total = sum(engine.forward(part, *batch).double() for part in parts)
    assert_near(total, expected(model, *batch))


def test_what_the_core_could_not_check_is_refused(engine, handle, batch):
    hidden, ids, weights = batch
    with pytest.raises(CompatError, match="float64"):
        engine.forward(handle, hidden.double(), ids, weights)
    for wrong in [(hidden[0], ids, weights), (hidden[1:], ids, weights), (hidden, ids, weights[:, :1])]:
        with pytest.raises(LsgError, match=r"expected \[tokens, H\]"):
            engine.forward(handle, *wrong)
    ids = ids.clone()
    ids[2, 0] = EXPERTS
    with pytest.raises(LsgError):
        engine.forward(handle, hidden, ids, weights)


def test_a_process_has_one_engine(model, repacked, monkeypatch):
    monkeypatch.setattr(engine_module, "_engine", None)
    observed = host.observe()
    settings = Settings(threads=1)
    first = process_engine(model, settings, observed, process=0, processes=1, replicas=1)
    assert process_engine(model, settings, observed, process=0, processes=1, replicas=1) is first
    with pytest.raises(CompatError, match="already computes"):
        process_engine(open_model(repacked), settings, observed, process=0, processes=1, replicas=1)


def test_a_load_for_programs(model, capsys):
    engine = ExpertEngine(model, Settings(threads=1, json=True), host.observe(), process=1, processes=2)
    engine.load([0, 1])
    *progress, loaded = map(json.loads, capsys.readouterr().out.splitlines())
    assert progress[-1]["event"] == "load"
    assert all(node["done_bytes"] == node["total_bytes"] for node in progress[-1]["nodes"])
    assert (loaded["event"], loaded["process"], loaded["layers"]) == ("loaded", 1, 2)
