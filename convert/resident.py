"""Everything that is not a routed expert: resident tensors and the small files beside them.

Invariant: bytes are copied, never interpreted, in chunks of constant size; only a config that describes a
quantisation which the remaining tensors do not have loses that description.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lsg.convert.checkpoint import INDEX_NAME, Checkpoint
from lsg.convert.direct import PAGE, PreallocatedFile, page_aligned, pwrite_all
from lsg.convert.schedule import ResidentPlan

_CHUNK_BYTES: Final = 8 << 20
# What a model directory may need besides weights: configs, tokenizers, templates, custom code, licences.
_COPIED_SUFFIXES: Final = frozenset(
    {".json", ".jinja", ".py", ".txt", ".model", ".tiktoken", ".vocab", ".spm", ".md"}
)
_COPIED_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
# Item types of a quantised tensor's codes. Plain numbers are wider, indices are I64.
_CODES: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "I32", "U32"})
_CONFIG: Final = "config.json"
# What configs say of quantised weights: a key of config.json, and a file of its own.
_QUANTIZATION: Final = ("quantization_config", "compression_config")
_QUANTIZATION_FILES: Final = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json"})


def write_part(
    checkpoint: Checkpoint, plan: ResidentPlan, shard: str, directory: Path, advance: Callable[[int], None]
) -> None:
    """Copy a shard's tensors to their places in a safetensors file, durable on return.

    `advance` is told of every chunk's bytes.
    """
    header = _header(plan)
    buffer = page_aligned(PAGE + _CHUNK_BYTES)
    with ExitStack() as stack:
        file = PreallocatedFile(directory / plan.name, file_bytes(plan), stack)
        pwrite_all(file.fd, memoryview(header), 0)
        offset = len(header)
        for tensor in plan.tensors:
            for start in range(0, tensor.nbytes if tensor.shard == shard else 0, _CHUNK_BYTES):
                begin = (offset + start) % PAGE
                chunk = buffer[begin : begin + min(_CHUNK_BYTES, tensor.nbytes - start)]
                checkpoint.read_into(tensor, start, chunk.data)
                file.write(chunk[None], offset + start)
                advance(len(chunk))
            offset += tensor.nbytes
        file.sync()


def file_bytes(plan: ResidentPlan) -> int:
    """Size of the file."""
    return len(_header(plan)) + sum(tensor.nbytes for tensor in plan.tensors)


def write_index(plans: Sequence[ResidentPlan], directory: Path) -> None:
    """Write the index that says which file holds which tensor."""
    weight_map = {tensor.name: plan.name for plan in plans for tensor in plan.tensors}
    total = sum(tensor.nbytes for plan in plans for tensor in plan.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def small_files(source: Path) -> list[Path]:
    """Files to copy, relative to the source, sorted; weights, their index and hidden files stay behind."""
    found = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    return sorted(path for path in found if is_small_file(path))


def is_small_file(path: Path) -> bool:
    """Whether a file of a model, named relative to it, is one to copy."""
    hidden = any(part.startswith(".") for part in path.parts)
    wanted = path.suffix in _COPIED_SUFFIXES or path.name in _COPIED_NAMES
    return wanted and not hidden and not path.name.endswith(".index.json")


def is_quantized(plans: Sequence[ResidentPlan]) -> bool:
    """Whether a tensor that stays is quantised: then what the configs say of that still holds."""
    return any(tensor.dtype in _CODES for plan in plans for tensor in plan.tensors)


def copy_small_files(source: Path, names: Sequence[Path], directory: Path, *, quantized: bool) -> None:
    """Copy them, contents only.

    When nothing that stays is quantised, whatever says how weights were is left out: a server that believed
    it would look for scales that are not there, or refuse the model.
    """
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if not quantized and name.name in _QUANTIZATION_FILES:
            continue
        if not quantized and name == Path(_CONFIG):
            (directory / name).write_bytes(_without_quantization((source / name).read_bytes()))
        else:
            shutil.copyfile(source / name, directory / name)


def _without_quantization(text: bytes) -> bytes:
    """config.json's bytes, as they are when it says nothing of a quantisation."""
    config = json.loads(text)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if not any(key in part for part in parts for key in _QUANTIZATION):
        return text
    for part in parts:
        for key in _QUANTIZATION:
            part.pop(key, None)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _header(plan: ResidentPlan) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in plan.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
