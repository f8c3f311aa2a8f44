"""How far rounding may move a log-probability: derived from the model at hand, not from what was observed.

Derivation. A served model differs from the reference by the roundings on the way: site i turns a value y into
y + d_i. All d_i are small, so a log-probability moves by the linear form sum_i J_i · d_i. The d_i are
independent of each other (they depend on the last bits), have mean zero and

    variance  r · (u · y)² / 3              r roundings of y to a format with unit roundoff u (uniform in
    ±u·y) + K · (u_sum · rms(y))² / 3     a sum of K terms, each partial sum rounded with u_sum + step² / 12
    int8 quantisation, step = the group's largest value / 127; where the engine's prompts round 4-bit
    weights as well (AMX), a sum with them has sum_k (x_k · step_k)² / 12 more, with the steps of
    csrc/kernels/int8_groups-inl.h

so the sum is close to normal, and it exceeds SIGMAS standard deviations about once in two million. The
factors J_i, which carry depth, gains and normalisations, are not bounded by hand: the standard deviation of
the sum is measured by running the reference with d_i drawn at random at every site. Linearity allows drawing
them larger or smaller by a factor, where they neither vanish in float32 nor change an expert, and dividing
the result by it.

The one step that is not linear is the choice of experts. A prompt takes part only if every margin between the
last chosen and the first other expert, and between the best and the second token where greedy choice counts,
is larger than SIGMAS standard deviations of itself.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lsg import _core

SIGMAS = 5.0
DRAWS = 48
BF16 = 2.0**-8
F32 = 2.0**-24
INT8_GROUP = 32
# On the matrix unit inputs and weights are rounded in groups of this.
COARSE_GROUP = 128
# A 4-bit code reaches from -8 to 7: its scale's largest weight may be this much above the group's largest.
REACH = 8 / 7
# Steps to that largest weight.
STEPS = 120


@dataclass(frozen=True)
class Noise:
    """What rounds: values between operations, sums inside them, and the experts' inputs to int8 or not.

    amplification: by how much the injected d_i are larger than the real ones. coarse: inputs and weights are
    rounded in groups of 128.
    """

    rounding: float
    summation: float
    int8: bool
    amplification: float
    coarse: bool = False


SERVED_F32 = Noise(F32, F32, int8=False, amplification=2.0**8)
SERVED_BF16 = Noise(BF16, F32, int8=False, amplification=2.0**-5)
SERVED_INT8 = Noise(
    F32, F32, int8=True, amplification=2.0**-4, coarse=_core.isa_levels()[-1] == _core.Isa.AMX
)


class NoisyModel:
    """A transformers Qwen3-MoE in float32; batch rows 1 … DRAWS get independent noise, row 0 gets none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._noise: Noise | None = None
        self._generator = torch.Generator().manual_seed(0)
        self._router_logits: list[torch.Tensor] = []
        for layer in model.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                self._after(linear, roundings=1, terms=linear.in_features)
            # Two in the norm; three in the rotation that follows: two products and their sum.
            self._after(layer.self_attn.q_norm, roundings=5)
            self._after(layer.self_attn.k_norm, roundings=5)
            # The scores' and the probabilities' roundings, and the sum over them.
            self._before(layer.self_attn.o_proj, roundings=3, terms=layer.self_attn.head_dim)
            self._after(layer.self_attn.o_proj, roundings=1, terms=layer.self_attn.o_proj.in_features)
            self._after(layer.input_layernorm, roundings=2)
            self._after(layer.post_attention_layernorm, roundings=2)
            # Both residual additions of the layer.
            self._after(layer, roundings=2)
            layer.mlp.gate.forward = self._router(layer.mlp.gate)
            layer.mlp.experts.forward = self._experts(layer.mlp.experts)
        self._after(model.model.norm, roundings=2)
        self._after(model.lm_head, roundings=1, terms=model.lm_head.in_features)

    @torch.no_grad()
    def run(self, tokens: list[int], noise: Noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Exact log-probabilities [T, V], their standard deviations, and each position's routing safety [T].

        Safety: the smallest margin between experts over all layers, in standard deviations of that margin.
        """
        self._noise, self._router_logits = noise, []
        self._generator.manual_seed(0)
        logits = self.model(torch.tensor([tokens]).expand(DRAWS + 1, -1), use_cache=False).logits
        log_probs = logits.double().log_softmax(-1)
        top_k = self.model.config.num_experts_per_tok
        safety = torch.full((len(tokens),), torch.inf)
        for router_logits in self._router_logits:
            rows = router_logits.double().view(DRAWS + 1, len(tokens), -1)
            order = rows[0].argsort(-1, descending=True)
            last, other = order[:, top_k - 1, None], order[:, top_k, None]
            margin = torch.stack([row.gather(-1, last) - row.gather(-1, other) for row in rows])[..., 0]
            safety = torch.minimum(safety, (margin[0] / self._spread(margin)).float())
        return log_probs[0], self._spread(log_probs), safety

    def _spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the noisy rows around the clean one, for noise of real size."""
        return (rows[1:] - rows[0]).square().mean(0).sqrt() / self._noise.amplification

    def _after(self, module: nn.Module, *, roundings: int, terms: int = 0) -> None:
        module.register_forward_hook(lambda _, __, output: self._site(output, roundings, terms))

    def _before(self, module: nn.Module, *, roundings: int, terms: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (self._site(inputs[0], roundings, terms),))

    def _site(self, value: torch.Tensor, roundings: int, terms: int = 0) -> torch.Tensor:
        rms = value.square().mean(-1, keepdim=True).sqrt()
        variance = roundings * (self._noise.rounding * value).square()
        variance = (variance + terms * (self._noise.summation * rms).square()) / 3
        return self._add(value, variance)

    def _int8(self, value: torch.Tensor) -> torch.Tensor:
        if not self._noise.int8:
            return value
        groups = value.split(COARSE_GROUP if self._noise.coarse else INT8_GROUP, -1)
        steps = [group.abs().amax(-1, keepdim=True).expand_as(group) / 127 for group in groups]
        return self._add(value, torch.cat(steps, -1).square() / 12)

    def _product(self, inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """A matrix [rows, K] for each token times its inputs [tokens, K]."""
        exact = torch.einsum("tk,tnk->tn", inputs, weights)
        if not self._noise.coarse:
            return exact
        groups = weights.split(COARSE_GROUP, -1)
        steps = [group.abs().amax(-1, keepdim=True).expand_as(group) * REACH / STEPS for group in groups]
        return self._add(
            exact, torch.einsum("tk,tnk->tn", inputs.square(), torch.cat(steps, -1).square()) / 12
        )

    def _add(self, value: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(value.shape, generator=self._generator) * variance.sqrt()
        clean = drawn.shape[0] // (DRAWS + 1)
        drawn[:clean] = 0
        return value + drawn * self._noise.amplification

    def _router(self, gate: nn.Module):
        def forward(hidden):
            logits = self._site(hidden.reshape(-1, hidden.shape[-1]) @ gate.weight.T, 1, hidden.shape[-1])
            self._router_logits.append(logits)
            weights, ids = logits.softmax(-1).topk(gate.top_k, -1)
            return logits, weights / weights.sum(-1, keepdim=True), ids

        return forward

    def _experts(self, experts: nn.Module):
        def forward(hidden, ids, weights):
            served, out = self._int8(hidden), torch.zeros_like(hidden)
            # Every (token, choice) pair gets its own noise, so gather the pairs before adding it.
            for choice in range(ids.shape[1]):
                gate_up = self._product(served, experts.gate_up_proj[ids[:, choice]])
                gate, up = gate_up.chunk(2, -1)
                inner = self._int8(nn.functional.silu(gate) * up)
                down = self._product(inner, experts.down_proj[ids[:, choice]])
                out = out + weights[:, choice, None] * down
            # Five values between operations when they are computed one by one: gate, up, silu, product,
            # output.
            return self._site(out, 5, sum(experts.down_proj.shape[1:]))

        return forward
