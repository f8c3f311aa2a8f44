"""Writes a family's checkpoint: experts as its format has them, other tensors, config.json, index, shards.

Invariant: the same arguments give the same bytes, in at least two shards that cut layers and experts apart.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.families.config import make_config
from checkpoints.families.expected import Expected, ExpertKey
from checkpoints.families.family import GATE_UP_DOWN, Family
from checkpoints.families.formats import FORMATS, Format
from checkpoints.families.integers import of_expert
from checkpoints.families.layouts import PER_EXPERT, Layout
from checkpoints.families.matrices import F64, Encoding, Half, Tensors, random_e4m3, typed
from checkpoints.families.models import MODELS
from checkpoints.shards import write_shards

_SHARDS = 3


@dataclass(frozen=True)
class Drawn:
    """Routed experts: their tensors as a checkpoint has them, and what they are worth."""

    tensors: Tensors
    weights: Mapping[ExpertKey, F64]
    biases: Mapping[ExpertKey, F64]


def draw_experts(family: Family, form: Format, rng: np.random.Generator) -> Drawn:
    """The routed experts of all layers of a family, in one of its formats."""
    writer = _Writer(family, form, rng)
    layout = next(layout for name, layout in family.formats.items() if FORMATS[name] is form)
    return Drawn(writer.experts(layout), writer.weights, writer.biases)


def make(path: Path, model: str, format_name: str, seed: int = 0) -> Expected:
    """Write `model` as `format_name` into `path` (made if absent)."""
    family, form = MODELS[model], FORMATS[format_name]
    rng = np.random.default_rng([seed, zlib.crc32(f"{model}/{format_name}".encode())])
    writer = _Writer(family, form, rng)
    experts = writer.experts(family.formats[format_name])
    resident = writer.resident() | writer.drafts()
    path.mkdir(parents=True, exist_ok=True)
    # The first and the last shard have experts, whatever else there is between them.
    names = sorted(experts)
    first = {name: experts[name] for name in names[: len(names) // 2]}
    write_shards(path, first | resident | experts, _SHARDS)
    config = make_config(family, form)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "tokenizer_config.json").write_text('{"model_max_length": 4096}\n')
    return Expected(
        weights=writer.weights,
        biases=writer.biases,
        rtol=form.experts.rtol,
        resident=frozenset(resident),
        routed=frozenset(experts),
        num_experts=family.experts,
        hidden=family.hidden,
        intermediate=family.intermediate,
        top_k=family.top_k,
        gated=family.gated,
        activations={family.experts_path.format(n=n): family.activation_of(n) for n in family.moe_layers},
        indices={family.experts_path.format(n=n): n for n in family.moe_layers},
        reorders=bool(getattr(form.experts, "g_idx", False) or getattr(form.experts, "desc_act", False)),
    )


class _Writer:
    """Draws tensors and notes what they mean."""

    def __init__(self, family: Family, form: Format, rng: np.random.Generator) -> None:
        self.weights: dict[ExpertKey, F64] = {}
        self.biases: dict[ExpertKey, F64] = {}
        self._family, self._form, self._rng = family, form, rng

    def experts(self, layout: Layout) -> Tensors:
        """Every routed expert's tensors."""
        family = self._family
        tensors: Tensors = {}
        for n in family.moe_layers:
            plain = self._form.mixed and n == family.moe_layers[-1]
            encoding = Half() if plain else self._form.experts
            tensors |= self._layer(family.experts_path.format(n=n), layout, encoding)
        return tensors

    def drafts(self) -> Tensors:
        """The experts of draft modules: the model proper never routes to them, so they stay."""
        family = self._family
        encoding = Half() if self._form.mixed else self._form.experts
        tensors: Tensors = {}
        for prefix in family.drafts:
            experts = [
                {p: encoding.draw(self._rng, *self._shape(p)).tensors for p in family.modules}
                for _ in range(family.draft_experts or family.experts)
            ]
            tensors |= PER_EXPERT.place(prefix, family.modules, experts)
        return tensors

    def _shape(self, projection: str) -> tuple[int, int]:
        family = self._family
        if projection == "down":
            return family.hidden, family.intermediate
        return family.intermediate, family.hidden

    def _layer(self, prefix: str, layout: Layout, encoding: Encoding) -> Tensors:
        family = self._family
        experts: list[dict[str, Tensors]] = []
        for expert in range(family.experts):
            experts.append({})
            for projection in family.modules:
                rows, cols = self._shape(projection)
                drawn = of_expert(encoding, expert).draw(self._rng, rows, cols)
                key = (prefix, expert, projection)
                self.weights[key] = drawn.value
                experts[-1][projection] = drawn.tensors
                if layout.bias:
                    bias = torch.from_numpy(self._rng.normal(size=rows)).bfloat16()
                    self.biases[key] = bias.double().numpy()
                    experts[-1][projection] = drawn.tensors | {"bias": bias}
        return layout.place(prefix, family.modules, experts)

    def resident(self) -> Tensors:
        """Attention, norms, routers, dense layers, shared experts, embeddings, the family's specialities."""
        family, names = self._family, self._family.resident
        hidden = family.model_hidden or family.hidden
        tensors = self._plain(names.embedding, (64, hidden))
        for n in sorted({*range(family.layers), *family.moe_layers}):
            layer = names.layer.format(n=n)
            for norm in names.layer_norms:
                tensors |= self._plain(f"{layer}.{norm}", (hidden,))
            for module in names.attention:
                tensors |= self._linear(f"{layer}.{module}", 64, hidden)
            if n not in family.moe_layers:
                if names.dense:
                    tensors |= self._mlp(f"{layer}.{names.dense}", GATE_UP_DOWN, hidden)
                continue
            tensors |= self._plain(f"{layer}.{names.router}", (family.experts, hidden))
            if names.router_bias:
                tensors |= self._plain(f"{layer}.{names.router_bias}", (family.experts,), "F32")
            if names.shared:
                tensors |= self._mlp(f"{layer}.{names.shared}", names.shared_modules, hidden)
        for name, (dtype, shape) in names.more.items():
            for n in family.moe_layers if "{n}" in name else (0,):
                tensors |= self._plain(name.format(n=n), shape, dtype)
        tensors |= self._plain(names.norm, (hidden,))
        return tensors | (self._plain(names.head, (64, hidden)) if names.head else {})

    def _mlp(self, prefix: str, modules: Mapping[str, str], hidden: int) -> Tensors:
        tensors: Tensors = {}
        for projection, module in modules.items():
            rows, cols = (hidden, 128) if projection == "down" else (128, hidden)
            tensors |= self._linear(f"{prefix}.{module}", rows, cols)
        return tensors

    def _linear(self, module: str, rows: int, cols: int) -> Tensors:
        drawn = self._form.dense.draw(self._rng, rows, cols)
        return {f"{module}.{suffix}": tensor for suffix, tensor in drawn.tensors.items()}

    def _plain(self, name: str, shape: tuple[int, ...], dtype: str = "BF16") -> Tensors:
        if dtype == "I64":
            return {name: torch.from_numpy(self._rng.integers(0, 4, shape))}
        if dtype == "F8_E4M3":
            return {name: typed(random_e4m3(self._rng, shape), torch.float8_e4m3fn)}
        if dtype == "F8_E8M0":
            return {name: typed(self._rng.integers(100, 140, shape, np.uint8), torch.float8_e8m0fnu)}
        values = torch.from_numpy(self._rng.normal(size=shape))
        return {name: values.to({"BF16": torch.bfloat16, "F32": torch.float32}[dtype])}
