"""One family in one format, served through lsg's plugin and judged by transformers on the same weights.

Invariant: nothing is judged by the server's own choices: prompts and continuations are given, the reference's
log-probabilities and the bound on rounding are known before the server starts.
"""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from click.testing import CliRunner
from integration import in_process, rounding
from integration.noise import SIGMAS

from checkpoints import servable
from checkpoints.servable.models import VOCABULARY
from lsg.convert.cli import main as lsg_convert

# Prompts of different lengths in one batch, not shorter than the windows of gpt-oss and gemma-4; not much
# longer, because in BF16 every token has to be routed by a wide margin.
LENGTHS = (4, 7, 5, 6)
CONTINUATION = 4
CANDIDATES = 400
# In standard deviations the root mean square of so many deviations is 1 when everything rounds as modelled.
MOST_SIGMAS = 2.0
FIRST_ORDINARY_TOKEN = 3
ON_A_GPU = (
    *("--attention-backend", "triton", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
    # One graph, of the batch that is decoded.
    *("--cuda-graph-bs-decode", str(len(LENGTHS))),
)


@dataclass(frozen=True)
class Sequence:
    """A prompt, what follows it, and what a server must say of them."""

    prompt: list[int]
    continuation: list[int]
    expected: rounding.Expected

    @property
    def positions(self) -> slice:
        """Where a server is asked and rounding decides nothing."""
        return slice(len(self.prompt) - 1, self.expected.safe)


@dataclass(frozen=True)
class Verdict:
    """How far the served log-probabilities are from the reference's.

    deviation: the largest; bound: the largest that rounding explains; sigmas: root mean square in standard
    deviations of rounding; wrong: the same of a model whose experts changed places; positions: how many were
    compared.
    """

    deviation: float
    bound: float
    sigmas: float
    wrong: float
    positions: int

    @property
    def good(self) -> bool:
        """Rounding explains every deviation and their size."""
        return self.deviation <= self.bound and self.sigmas <= MOST_SIGMAS

    @property
    def sharp(self) -> bool:
        """Rounding would not hide a wrong expert."""
        return self.wrong > 2 * MOST_SIGMAS


def prove(name: str, form: str, scratch: Path, *arguments: str, experts: str = "keep") -> Verdict:
    """Make, convert, serve, compare. Raises RuntimeError when the conversion fails."""
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    dtype = "bfloat16" if gpu else servable.MODELS[name].dtype
    reference = servable.make(scratch / "checkpoint", name, form)
    sequences = choose(reference, dtype)
    run = CliRunner().invoke(
        lsg_convert, [str(scratch / "checkpoint"), str(scratch / "repacked"), "--experts", experts]
    )
    if run.exit_code:
        raise RuntimeError(run.output.strip() or repr(run.exception))
    served = in_process.log_probs(
        scratch / "repacked",
        [sequence.prompt for sequence in sequences],
        [sequence.continuation for sequence in sequences],
        *("--dtype", dtype, *((*ON_A_GPU, *servable.MODELS[name].on_a_gpu) if gpu else ()), *arguments),
    )
    return judge(reference, sequences, served)


def choose(reference: torch.nn.Module, dtype: str) -> list[Sequence]:
    """Random sequences of which at least the first decoded token can be compared."""
    draw = random.Random(0)
    return [_sequence(reference, dtype, length, draw) for length in LENGTHS]


def _sequence(reference: torch.nn.Module, dtype: str, length: int, draw: random.Random) -> Sequence:
    """Tokens are drawn again from the first on whose choices rounding could change."""
    tokens: list[int] = []
    for _ in range(CANDIDATES):
        missing = length + CONTINUATION - len(tokens)
        tokens += [draw.randrange(FIRST_ORDINARY_TOKEN, VOCABULARY) for _ in range(missing)]
        # What follows the last token is not asked for.
        expected = rounding.expect(reference, tokens[:-1], dtype)
        if expected.safe > length:
            return Sequence(tokens[:length], tokens[length:], expected)
        del tokens[expected.safe :]
    msg = f"no sequence of {length} tokens was found whose choices rounding cannot change"
    raise RuntimeError(msg)


def judge(reference: torch.nn.Module, sequences: list[Sequence], served: torch.Tensor) -> Verdict:
    """Compare what was served, [sequences, positions, vocabulary or more]."""
    shuffled = _with_other_experts(reference)
    deviations, spreads, bounds, wrong, positions = [], [], [], [], 0
    for sequence, rows in zip(sequences, served, strict=True):
        asked = sequence.positions
        exact, spread = sequence.expected.log_probs[asked], sequence.expected.spread[asked]
        deviations.append((rows[: len(exact), :VOCABULARY] - exact).abs())
        spreads.append(deviations[-1] / spread)
        bounds.append(SIGMAS * float(spread.max()))
        tokens = [*sequence.prompt, *sequence.continuation][:-1]
        with torch.no_grad():
            other = shuffled(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, asked]
        wrong.append((other.double().log_softmax(-1) - exact).abs() / spread)
        positions += len(exact)
    worst = max(range(len(sequences)), key=lambda number: float(deviations[number].max()) / bounds[number])
    return Verdict(
        deviation=float(deviations[worst].max()),
        bound=bounds[worst],
        sigmas=float(torch.cat(spreads).square().mean().sqrt()),
        wrong=float(torch.cat(wrong).square().mean().sqrt()),
        positions=positions,
    )


def _with_other_experts(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every expert's output matrix given to its neighbour."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        matrix = getattr(module, "down_proj", None)
        if isinstance(matrix, torch.nn.Parameter):
            matrix.data = matrix.data.roll(1, 0)
    return changed
