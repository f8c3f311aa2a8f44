"""What the demo shows of model directories: their safetensors' tensors, and what transformers answers."""

from pathlib import Path

from safetensors import safe_open


def tensors(model: Path) -> dict[str, int]:
    """Bytes of every tensor in the directory's safetensors, by name; only headers are read."""
    bytes_per_value = {"F32": 4, "F16": 2, "BF16": 2}
    found = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (not a mapping)
                view = shard.get_slice(name)
                count = 1
                for size in view.get_shape():
                    count *= size
                found[name] = count * bytes_per_value[view.get_dtype()]
    return found


def experts(sizes: dict[str, int]) -> dict[str, int]:
    """The routed experts' tensors among them."""
    return {name: size for name, size in sizes.items() if ".mlp.experts." in name}


def described(sizes: dict[str, int]) -> str:
    """How many tensors there are, how large, and how many of them are experts."""
    found = experts(sizes)
    whole = f"{len(sizes)} tensors, {mb(sum(sizes.values()))}"
    return f"{whole}; routed experts among them: {len(found)} tensors, {mb(sum(found.values()))}"


def mb(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB"


def transformers_answers(model: Path, questions: list[str]) -> dict[str, str]:
    """Greedy answers of the reference implementation."""
    # Imported here because it takes seconds: nothing is shown meanwhile.
    from checkpoints.hf import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    answers = {}
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        output = network.generate(prompt, max_new_tokens=64, do_sample=False)
        answers[question] = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    return answers
