"""A byte-level tokenizer with a chat template, so that a tiny checkpoint answers the whole OpenAI API.

Any text round-trips: all 256 bytes are in the vocabulary, and training only adds merges.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(question: str, answer: str | None = None) -> str:
    """One exchange as CHAT_TEMPLATE renders it; without an answer, the prompt for one."""
    prompt = f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n"
    return prompt if answer is None else f"{prompt}{answer}{IM_END}\n"


def make_tokenizer(texts: Sequence[str] = (), vocab_size: int = 259) -> Tokenizer:
    """Special tokens first, then the 256 bytes, then merges learnt from `texts` up to `vocab_size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and what transformers needs beside it."""
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
