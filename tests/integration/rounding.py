"""How far rounding may move any model's log-probabilities: noise.py's derivation, at every torch operation.

noise.py names the sites of one architecture. Here a site is every floating-point operation that the
reference executes: each may round its result (relative unit roundoff u), and one that sums K terms rounds
every partial sum. A server that fuses operations rounds less often, so this is an upper estimate of the same
variance,

    (u · y)² / 3  +  K · (u_sum · rms(y))² / 3,

and the standard deviation of a log-probability is measured as there: by running the reference with noise of
that size, enlarged where it would vanish in float32, on copies of the prompt.

Choices are not linear. Wherever the reference takes the largest k of some numbers, the margin between the
last taken and the first left out is measured in standard deviations of itself; positions from the first one
on whose margin is below SIGMAS take no part, because everything after a different choice differs.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from integration.noise import BF16, F32, SIGMAS, Noise
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = 32
LARGEST = 1e18
SERVED = {
    "float32": Noise(F32, F32, int8=False, amplification=2.0**8),
    "bfloat16": Noise(BF16, F32, int8=False, amplification=2.0**-5),
}
# Operations that move numbers, or count, and round nothing.
_MOVES = frozenset(
    """
    _to_copy _unsafe_view amax arange as_strided cat clamp clamp_ clone constant_pad_nd copy_ detach
    embedding empty empty_like expand eye fill_ flip full gather histc index index_put_ index_select
    masked_fill masked_fill_ masked_scatter maximum minimum neg new_empty new_full new_ones
    new_zeros ones ones_like randn relu repeat repeat_interleave roll scalar_tensor scatter scatter_
    select_scatter slice_scatter sort split_with_sizes_copy stack topk tril tril_ triu triu_ where
    zero_ zeros zeros_like
    """.split()  # noqa: SIM905 (it reads better)
)
_SUMS_OF_ROWS = ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm")


@dataclass
class _Rounding(TorchDispatchMode):
    """Adds noise to every result, and keeps what was chosen from."""

    noise: Noise | None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    choices: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        result = operation(*args, **(kwargs or {}))
        if name == "topk" and args[0].is_floating_point():
            self.choices.append((args[0].detach().double(), args[1]))
        skipped = name in _MOVES or operation.is_view or self.noise is None
        if skipped or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        drawn = torch.randn(result.shape, generator=self.generator, dtype=result.dtype)
        return result.add_(drawn * self._deviation(name, args, result))

    def _deviation(self, name: str, args: Any, result: torch.Tensor) -> torch.Tensor:
        assert self.noise is not None
        variance = (self.noise.rounding * result).square()
        terms = _terms(name, args, result)
        if terms > 1:
            rms = result.square().mean(-1, keepdim=True) if result.ndim else result.square()
            variance = variance + terms * self.noise.summation**2 * rms
        # Masks are made of the lowest number there is.
        deviation = (variance / 3).sqrt() * self.noise.amplification
        return deviation.where(result.abs() < LARGEST, 0.0)


def _terms(name: str, args: Any, result: torch.Tensor) -> int:
    """How many products or numbers are summed for each number of the result."""
    if name in _SUMS_OF_ROWS:
        factors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        return int(factors[-2].shape[-1])
    if name in ("sum", "mean", "cumsum", "logsumexp", "_softmax"):
        return int(args[0].numel() // max(1, result.numel())) or 1
    if name == "convolution":
        return int(args[1][0].numel())
    return 1


@dataclass(frozen=True)
class Expected:
    """What must come out of a server for a sequence: log_probs, spread [positions, vocabulary], float64.

    safe: the positions, from the first, before which no rounding changes a choice.
    """

    log_probs: torch.Tensor
    spread: torch.Tensor
    safe: int


@torch.no_grad()
def expect(model: torch.nn.Module, tokens: list[int], dtype: str) -> Expected:
    """The distribution after each token of a sequence, and what rounding in `dtype` does to it."""
    noise = SERVED[dtype]
    exact, choices = _run(model, torch.tensor([tokens]), None)
    noisy, perturbed = _run(model, torch.tensor([tokens] * DRAWS), noise)
    spread = (noisy - exact).square().mean(0).sqrt() / noise.amplification
    safe = len(tokens)
    for (clean, k), (rows, _) in zip(choices, perturbed, strict=True):
        safe = min(safe, _safe(clean, rows, k, len(tokens), noise))
    # Logarithms of a softmax in float32, on either side, are good to a few units of the largest input.
    reporting = 4 * F32 * float(exact.abs().max())
    # In float32 the reference rounds as the server does.
    both = 2**0.5 if dtype == "float32" else 1.0
    return Expected(exact[0], spread * both + reporting, safe)


def _run(
    model: torch.nn.Module, tokens: torch.Tensor, noise: Noise | None
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, int]]]:
    with _Rounding(noise) as rounding:
        logits = model(input_ids=tokens, use_cache=False).logits
    return logits.double().log_softmax(-1), rounding.choices


def _safe(clean: torch.Tensor, rows: torch.Tensor, k: int, length: int, noise: Noise) -> int:
    """Positions before the first whose choice of k is not certain; each may choose in several groups."""
    count = clean.shape[-1]
    if k >= count:
        return length
    clean, rows = clean.reshape(length, -1, count), rows.reshape(DRAWS, length, -1, count)
    order = clean.argsort(-1, descending=True)
    last, other = order[..., k - 1 : k], order[..., k : k + 1]

    def margin(scores: torch.Tensor) -> torch.Tensor:
        taken, left = (index.expand(*scores.shape[:-1], 1) for index in (last, other))
        return (scores.gather(-1, taken) - scores.gather(-1, left))[..., 0]

    spread = (margin(rows) - margin(clean)).square().mean(0).sqrt() / noise.amplification
    unsafe = (margin(clean) < SIGMAS * spread).any(-1).nonzero()
    return int(unsafe[0]) if len(unsafe) else length
