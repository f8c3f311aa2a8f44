"""llama-quantize on the same weights: the peer that users would otherwise convert with.

The program is the user's own; only its command line is known here. It gets one GGUF file with the experts of
the checkpoint's shape, in BF16, and writes them as Q4_0 (groups of 32, 4.5 bits a weight, as our int4).
"""

from pathlib import Path

import gguf
import numpy as np
import process


def write_gguf(path: Path, *, layers: int, experts: int, hidden: int, intermediate: int) -> int:
    """Random experts as a qwen3moe GGUF file; returns its bytes."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_expert_feed_forward_length(intermediate)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(8)
    writer.add_head_count(32)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)
    shapes = {
        "ffn_gate_exps": (experts, intermediate, hidden),
        "ffn_up_exps": (experts, intermediate, hidden),
        "ffn_down_exps": (experts, hidden, intermediate),
    }
    tile = (random.standard_normal(1 << 22, np.float32) * 0.02).view(np.uint32) >> 16
    for layer in range(layers):
        for name, shape in shapes.items():
            weights = np.resize(tile.astype(np.uint16), shape)
            # BF16 tensors are passed as raw bytes, with the byte shape of their last axis.
            raw = weights.view(np.uint8).reshape(*shape[:-1], shape[-1] * 2)
            writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def quantize(program: Path, source: Path, out: Path, threads: int) -> process.Used:
    """Run it once. Raises RuntimeError with its last words."""
    return process.run([program, source, out, "Q4_0", str(threads)])
