"""Writes a servable checkpoint and returns the model that it is.

Invariant: the model's weights are the checkpoint's, exactly where float32 holds them: experts as drawn by
their format's generator, everything else BF16 numbers under the published names.
"""

import json
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from checkpoints.families.formats import FORMATS
from checkpoints.families.matrices import F64
from checkpoints.families.write import Drawn, draw_experts
from checkpoints.hf import transformers
from checkpoints.servable.models import MODELS, family
from checkpoints.shards import write_shards
from checkpoints.tokenizer import make_tokenizer, write_tokenizer

_SHARDS = 2


def make(path: Path, name: str, format_name: str, seed: int = 0) -> torch.nn.Module:
    """Write model `name` with experts as `format_name` into `path`; returns it in float32, ready to run."""
    servable, chosen, form = MODELS[name], family(name), FORMATS[format_name]
    draw = [seed, zlib.crc32(f"{name}/{format_name}".encode())]
    experts = draw_experts(chosen, form, np.random.default_rng(draw))
    config = servable.config(chosen, on_a_gpu=torch.cuda.is_available())
    path.mkdir(parents=True, exist_ok=True)
    model = _model(path, config, servable.known_as, torch.Generator().manual_seed(draw[1]))
    resident = _published(model, servable.prefix)
    routed = re.compile("|".join(re.escape(chosen.experts_path.format(n=n)) for n in chosen.moe_layers))
    kept = {key: tensor for key, tensor in resident.items() if not routed.match(key) or "router" in key}
    _put_experts(model, chosen.experts_path, experts)
    write_shards(path, kept | experts.tensors, _SHARDS)
    if form.quantization is not None:
        config = _quantized(config, dict(form.quantization), in_text=chosen.quantization_in_text)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(path, make_tokenizer())
    return model


def _quantized(config: dict[str, Any], quantization: dict[str, Any], *, in_text: bool) -> dict[str, Any]:
    if in_text:
        return config | {"text_config": config["text_config"] | {"quantization_config": quantization}}
    return config | {"quantization_config": quantization}


def _model(
    path: Path, config: dict[str, Any], known_as: tuple[str, str], generator: torch.Generator
) -> torch.nn.Module:
    """A random model: activations keep their size, experts and routers matter, all numbers are BF16's."""
    model_type, architecture = known_as
    if model_type:
        config = config["text_config"] | {"model_type": model_type, "architectures": [architecture]}
    (path / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoConfig.from_pretrained(path)
    loaded._attn_implementation = "eager"
    model = getattr(transformers, loaded.architectures[0])(loaded).float().eval()

    def normal(tensor: torch.Tensor, mean: float, deviation: float) -> None:
        drawn = mean + deviation * torch.randn(tensor.shape, generator=generator)
        tensor.copy_(drawn.to(tensor.dtype).bfloat16())

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name and loaded.get_text_config().tie_word_embeddings:
                # It is the head too, and gemma multiplies its rows by the square root of their length.
                normal(parameter, 0, 2 / parameter.shape[-1] ** 0.5)
            elif "embed_tokens" in name:
                normal(parameter, 0, 1)
            elif parameter.ndim > 1:
                # Routers and the head choose: their margins should be wide.
                chooses = re.search(r"(gate|router|router\.proj|lm_head)\.weight$", name)
                normal(parameter, 0, (2 if chooses else 1) / parameter.shape[-1] ** 0.5)
            elif name.endswith(("bias", "sinks")):
                normal(parameter, 0, 0.1)
            else:
                normal(parameter, 1, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                normal(buffer, 0, 0.1)
    return model


def _published(model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """The model's tensors as transformers publishes them, in BF16 but for what is published in float32."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(Path(directory).glob("*.safetensors")):
            tensors |= load_file(file)
    return {
        f"{prefix}{name}": tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        for name, tensor in tensors.items()
    }


def _put_experts(model: torch.nn.Module, experts_path: str, experts: Drawn) -> None:
    """Give the model the experts that were drawn."""
    modules = [module for module in model.modules() if getattr(module, "down_proj", None) is not None]
    modules = [module for module in modules if isinstance(module.down_proj, torch.nn.Parameter)]
    prefixes = list(dict.fromkeys(prefix for prefix, _, _ in experts.weights))
    for module, prefix in zip(modules, prefixes, strict=True):
        _put(module, _stack(experts.weights, prefix), _stack(experts.biases, prefix))


def _stack(values: Mapping[tuple[str, int, str], F64], prefix: str) -> dict[str, torch.Tensor]:
    """Projection -> the values of all experts in float32."""
    found: dict[str, list[torch.Tensor]] = {}
    for (path, _, projection), value in values.items():
        if path == prefix:
            found.setdefault(projection, []).append(torch.from_numpy(value).float())
    return {projection: torch.stack(parts) for projection, parts in found.items()}


@torch.no_grad()
def _put(module: torch.nn.Module, weights: dict[str, torch.Tensor], biases: dict[str, torch.Tensor]) -> None:
    if "gate" not in weights:
        module.up_proj.copy_(weights["up"])
        module.down_proj.copy_(weights["down"])
    elif biases:
        # gpt-oss: inputs first, gate and up in turn.
        gate_up = torch.stack([weights["gate"], weights["up"]], 2).flatten(1, 2)
        module.gate_up_proj.copy_(gate_up.transpose(1, 2))
        module.down_proj.copy_(weights["down"].transpose(1, 2))
        module.gate_up_proj_bias.copy_(torch.stack([biases["gate"], biases["up"]], 2).flatten(1, 2))
        module.down_proj_bias.copy_(biases["down"])
    else:
        module.gate_up_proj.copy_(torch.cat([weights["gate"], weights["up"]], 1))
        module.down_proj.copy_(weights["down"])
