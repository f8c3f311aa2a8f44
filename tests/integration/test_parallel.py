"""Servers of two processes against transformers: the bounds are those of one process, derived in noise.py."""

import pytest
from integration import noise, reference
from integration.server import lsg_serve, serve

pytestmark = pytest.mark.server


@pytest.mark.parametrize("way", ["--tp-size", "--pp-size", "--dp-size"])
def test_two_processes(checkpoint, repacked, tmp_path, way):
    """Half of every expert, half of the layers, or all of them again in the same memory."""
    original = reference.load(checkpoint)
    cases = reference.cases(original, noise.SERVED_F32, both_round=True, count=4)
    log = tmp_path / "log"
    arguments = ("--dtype", "float32", "--activations", "float", "--threads", "1", way, "2")
    with serve(lsg_serve(repacked("bf16")), *arguments, log=log) as server:
        for case in cases:
            tokens, log_probs = server.log_probs(
                case.prompt, len(case.continuation), original.config.vocab_size
            )
            assert tokens == case.continuation
            assert (log_probs - case.log_probs).abs().max() <= case.bound
    text = log.read_text(errors="replace")
    layers = 1 if way == "--pp-size" else 2
    assert text.count(f"lsg: {layers} expert layers, ") == 2
    for process in (1, 2):
        assert f"lsg: process {process} of 2" in text
