"""A small Qwen3-MoE that knows FACTS by heart, trained from scratch on the CPU in a few seconds.

Training is deterministic for a seed and a thread count, and ends when every answer has been learnt with a
margin that survives rounding to four bits.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from checkpoints.facts import FACTS
from checkpoints.hf import transformers
from checkpoints.qwen3_moe import make_config, write_configs
from checkpoints.shards import write_shards
from checkpoints.tokenizer import END_OF_TEXT, IM_END, chat, make_tokenizer, write_tokenizer

VOCAB_SIZE = 640
MAX_STEPS = 400
# Mean over the answers' tokens: each is predicted with 99.5 %, enough to survive int4 experts.
TARGET_LOSS = 0.005
LEARNING_RATE = 2e-3
# About 1 / sqrt(hidden). From the usual 0.02 attention learns the answers alone: without the experts' output
# 19 of the 32 were still right. From this value none is, so the demo cannot succeed without its experts.
INITIALIZER_RANGE = 0.08


def train_demo(
    path: str | Path,
    *,
    layers: int = 4,
    hidden: int = 128,
    intermediate: int = 96,
    experts: int = 16,
    top_k: int = 4,
    seed: int = 0,
    shards: int = 2,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train on FACTS and write a bf16 checkpoint into `path`; `report` gets a line now and then.

    Raises RuntimeError when the loss does not come down.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer([chat(*fact) for fact in FACTS], VOCAB_SIZE)
    config = make_config(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        experts=experts,
        top_k=top_k,
        dtype="bfloat16",
        vocab_size=tokenizer.get_vocab_size(),
    )
    torch.manual_seed(seed)
    start = transformers.Qwen3MoeConfig(**config | {"initializer_range": INITIALIZER_RANGE})
    model = transformers.Qwen3MoeForCausalLM(start)
    _train(model, *_batch(tokenizer), report)
    write_shards(path, per_expert(model.state_dict()), shards)
    write_tokenizer(path, tokenizer)
    write_configs(path, config, tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT))
    return path


def per_expert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published layout, in bf16: one tensor per expert, where transformers holds them fused."""
    tensors = {}
    for name, tensor in state.items():
        values = tensor.to(torch.bfloat16)
        if name.endswith(".mlp.experts.gate_up_proj"):
            prefix = name.removesuffix(".gate_up_proj")
            for expert, gate_up in enumerate(values):
                gate, up = gate_up.chunk(2)
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up
        elif name.endswith(".mlp.experts.down_proj"):
            prefix = name.removesuffix(".down_proj")
            for expert, down in enumerate(values):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = down
        else:
            tensors[name] = values
    return tensors


def _batch(tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """All facts as input ids and labels [facts, tokens]; only the answers' tokens are labelled."""
    ignored = -100
    rows = []
    for question, answer in FACTS:
        prompt = tokenizer.encode(chat(question)).ids
        full = tokenizer.encode(chat(question, answer)).ids
        rows.append((full, [ignored] * len(prompt) + full[len(prompt) :]))
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.token_to_id(END_OF_TEXT)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [ignored] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


def _train(
    model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, report: Callable[[str], None]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    began = time.monotonic()
    model.train()
    for step in range(1, MAX_STEPS + 1):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = loss.item() < TARGET_LOSS
        if done or step % 20 == 0:
            report(f"step {step:3}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s")
        if done:
            return
    msg = f"the loss is {loss.item():.3f} after {MAX_STEPS} steps, expected less than {TARGET_LOSS}"
    raise RuntimeError(msg)
