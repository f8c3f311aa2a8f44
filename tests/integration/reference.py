"""What should be served: a checkpoint's exact log-probabilities by Hugging Face transformers, in float32."""

import copy
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from integration.noise import F32, SIGMAS, Noise, NoisyModel

from checkpoints.hf import transformers
from lsg import manifest
from lsg._core import Dtype, LayerFile, Matrix, unpack_expert

# Few tokens, because every one of them has to be routed by a margin that the noise cannot close.
PROMPT_TOKENS = 6
NEW_TOKENS = 3
FIRST_ORDINARY_TOKEN = 3
CANDIDATES = 2000


@dataclass(frozen=True)
class Case:
    """A prompt whose routing and greedy tokens no rounding can change, with what must come out.

    log_probs, spread: [positions, vocabulary], the distribution after each token but the last, and the
    standard deviations that rounding gives it. bound: the largest deviation that rounding explains.
    """

    prompt: list[int]
    continuation: list[int]
    log_probs: torch.Tensor
    spread: torch.Tensor
    bound: float


def load(directory: Path) -> torch.nn.Module:
    """The checkpoint in float32, which holds its bf16 weights exactly."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def replace_experts(model: torch.nn.Module, repacked: Path) -> None:
    """Give the model the experts that the layer files hold, decoded with numpy."""
    for layer in manifest.load(repacked).layers:
        file = LayerFile(str(repacked / manifest.DIRECTORY / layer.file))
        experts = model.model.layers[layer.index].mlp.experts
        for expert in range(layer.num_experts):
            decoded = [
                decode(matrix, layer.gate_up) for matrix in unpack_expert(file.spec, file.expert(expert))
            ]
            gate, up, down = (torch.from_numpy(matrix) for matrix in decoded)
            experts.gate_up_proj.data[expert] = torch.cat([gate, up])
            experts.down_proj.data[expert] = down


def decode(matrix: Matrix, panel: manifest.Panel) -> np.ndarray:
    """A matrix's values by FORMAT.md: int4 codes are q + 8, with a bf16 scale a group; bf16 are raw bits."""
    if manifest.DTYPES[panel.dtype] is Dtype.BF16:
        return bf16(matrix.codes)
    scales = np.repeat(bf16(matrix.scales), panel.scale_k, axis=1)[:, : matrix.codes.shape[1]]
    return (matrix.codes.astype(np.float32) - 8) * scales


def bf16(bits: np.ndarray) -> np.ndarray:
    """Raw bf16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def cases(model: torch.nn.Module, noise: Noise, *, count: int = 6, both_round: bool = False) -> list[Case]:
    """Prompts of random tokens. both_round: the reference's own float32 is as coarse as the server's."""
    noisy = NoisyModel(copy.deepcopy(model))
    draw = partial(random.Random(0).randrange, FIRST_ORDINARY_TOKEN, model.config.vocab_size)
    sigmas = SIGMAS * (2**0.5 if both_round else 1.0)
    found: list[Case] = []
    for _ in range(CANDIDATES):
        case = _case(model, noisy, [draw() for _ in range(PROMPT_TOKENS)], noise, sigmas)
        if case is not None:
            found.append(case)
        if len(found) == count:
            return found
    msg = f"only {len(found)} of {count} prompts have margins that this noise cannot close"
    raise RuntimeError(msg)


def _case(
    model: torch.nn.Module, noisy: NoisyModel, prompt: list[int], noise: Noise, sigmas: float
) -> Case | None:
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        log_probs = log_probs_of(model, tokens)
        tokens.append(int(log_probs[-1].argmax()))
    clean, spread, safety = noisy.run(tokens[:-1], noise)
    # The noise was put into a copy of the model whose experts and router are written out; it must be the same
    # model.
    torch.testing.assert_close(clean, log_probs, rtol=0, atol=1e-4)
    best, second = log_probs[PROMPT_TOKENS - 1 :].topk(2, -1).indices.T[..., None]
    rows, spreads = log_probs[PROMPT_TOKENS - 1 :], spread[PROMPT_TOKENS - 1 :]
    gap = (rows.gather(-1, best) - rows.gather(-1, second)) / (
        spreads.gather(-1, best) + spreads.gather(-1, second)
    )
    if min(safety.min(), gap.min()) < sigmas:
        return None
    # Taking the logarithm of a softmax in float32, on either side, is good to a few units of its largest
    # input.
    reporting = 4 * F32 * float(log_probs.abs().max())
    spread = spread * (sigmas / SIGMAS)
    bound = SIGMAS * float(spread.max()) + reporting
    return Case(prompt, tokens[PROMPT_TOKENS:], log_probs, spread + reporting, bound)


@torch.no_grad()
def log_probs_of(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """The distribution after each token, [tokens, vocabulary]."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
