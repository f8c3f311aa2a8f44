"""Served log-probabilities against Hugging Face transformers on the same weights.

The bounds are derived in noise.py, for each prompt, from unit roundoffs and the model itself.
"""

import pytest
import torch
from integration import noise, reference
from integration.server import lsg_serve, serve

pytestmark = pytest.mark.server


def assert_served(server, cases, vocab_size):
    deviations = []
    for case in cases:
        tokens, log_probs = server.log_probs(case.prompt, len(case.continuation), vocab_size)
        assert tokens == case.continuation
        difference = (log_probs - case.log_probs).abs()
        assert difference.max() <= case.bound
        deviations.append(difference / case.spread)
    # The largest deviation is bounded loosely, by the noisiest token's spread; the typical one is not: in
    # standard deviations the root mean square of so many is 1 when everything rounds as modelled.
    assert torch.cat(deviations).square().mean().sqrt() <= 2.0


@pytest.fixture(scope="module")
def original(checkpoint):
    return reference.load(checkpoint)


@pytest.fixture(scope="module")
def quantized(checkpoint, repacked):
    """The original with the experts that int4 conversion left of it."""
    model = reference.load(checkpoint)
    reference.replace_experts(model, repacked("int4"))
    return model


def test_bf16_experts_in_float32(original, repacked, tmp_path):
    """Nothing is rounded to less than float32, so the bound is one of summation order: about 1e-5."""
    cases = reference.cases(original, noise.SERVED_F32, both_round=True)
    arguments = ("--dtype", "float32", "--activations", "float")
    with serve(lsg_serve(repacked("bf16")), *arguments, log=tmp_path / "log") as server:
        assert_served(server, cases, original.config.vocab_size)


def test_bf16_experts_in_bfloat16(original, repacked, tmp_path):
    """Values between operations are rounded to bf16, unit roundoff 2^-8; the rest is the model's depth.

    Some levels round experts' inputs to bf16 too: hidden states are, and the product of gate and up counts.
    """
    cases = reference.cases(original, noise.SERVED_BF16)
    arguments = ("--dtype", "bfloat16")
    with serve(lsg_serve(repacked("bf16")), *arguments, log=tmp_path / "log") as server:
        assert_served(server, cases, original.config.vocab_size)


def test_int4_experts_are_the_dequantised_weights(quantized, repacked, tmp_path):
    """int4 changes the weights and nothing else: transformers agrees as closely on the decoded weights."""
    cases = reference.cases(quantized, noise.SERVED_F32, both_round=True)
    arguments = ("--dtype", "float32", "--activations", "float")
    with serve(lsg_serve(repacked("int4")), *arguments, log=tmp_path / "log") as server:
        assert_served(server, cases, quantized.config.vocab_size)


def test_int4_experts_with_int8_activations(quantized, repacked, tmp_path):
    """Experts' inputs are rounded to 1/127 of their group's largest value, twice a layer."""
    cases = reference.cases(quantized, noise.SERVED_INT8)
    arguments = ("--dtype", "float32", "--activations", "int8")
    with serve(lsg_serve(repacked("int4")), *arguments, log=tmp_path / "log") as server:
        assert_served(server, cases, quantized.config.vocab_size)


def test_an_ordinary_directory_is_served_by_sglang_alone(original, checkpoint, tmp_path):
    """With the plugin installed: sglang's own experts, and the answers they should give."""
    cases = reference.cases(original, noise.SERVED_F32, both_round=True)
    log = tmp_path / "log"
    with serve(lsg_serve(checkpoint), "--dtype", "float32", log=log) as server:
        assert_served(server, cases, original.config.vocab_size)
    text = log.read_text(errors="replace")
    assert "was not made by lsg-convert: sglang serves it alone" in text
    assert "expert layers mapped" not in text
    assert "quant_method=UnquantizedFusedMoEMethod" in text
