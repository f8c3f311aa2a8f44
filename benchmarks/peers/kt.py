"""MoE layers in kt-kernel: answers each number of tokens on the standard input as side.py wants it.

    python kt.py DIR METHOD HIDDEN INTERMEDIATE EXPERTS TOP_K LAYERS THREADS NODES SECONDS

DIR has the wheel's kt_kernel/. Its extension is used directly, as its own Python wrappers do, without torch.
All experts have the same weights, each in memory of its own.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

# From kt_kernel/_cpu_detect.py, best first; the flags of /proc/cpuinfo that each build needs.
VARIANTS = {
    "amx": {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"},
    "avx512_bf16": {"avx512f", "avx512_vnni", "avx512_vbmi", "avx512_bf16"},
    "avx512_vbmi": {"avx512f", "avx512_vnni", "avx512_vbmi"},
    "avx512_vnni": {"avx512f", "avx512_vnni"},
    "avx512_base": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma"},
}
# The classes that its wrappers choose from, best first.
CLASSES = {
    "RAWINT4": ("AMXInt4_KGroup_MOE", "AVX2RawInt4_MOE"),
    "AMXINT4": ("AMXInt4_MOE",),
    "AMXINT8": ("AMXInt8_MOE",),
    "FP8": ("AMXFP8_MOE", "AVX2FP8_MOE"),
    "BF16": ("AMXBF16_MOE", "AVX2BF16_MOE"),
    "MXFP4": ("AMXFP4_KGroup_MOE", "AVX2MXFP4_MOE"),
    "Q4_0": ("MOE",),
    "Q4_K": ("MOE",),
    "Q8_0": ("MOE",),
}
# Bits a weight, with the scales of groups.
BITS = {
    "RAWINT4": 4.5,
    "AMXINT4": 4,
    "AMXINT8": 8,
    "FP8": 8,
    "BF16": 16,
    "MXFP4": 4.25,
    "Q4_0": 4.5,
    "Q4_K": 4.5,
    "Q8_0": 8.5,
}
GGML_TYPES = {"Q4_0": 2, "Q8_0": 8, "Q4_K": 12}
BF16_GGML_TYPE = 30
QUANTS = {"RAWINT4": (4, 32), "MXFP4": (4, 32), "FP8": (8, 128)}
LONGEST = 4096


def load(directory: Path) -> ModuleType:
    """The extension that its own loader would choose on this processor."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in info if line.startswith("flags")).split())
    for variant, needed in VARIANTS.items():
        tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        found = sorted((directory / "kt_kernel").glob(f"_kt_kernel_ext_{variant}.{tag}-*.so"))
        if needed <= flags and found:
            spec = importlib.util.spec_from_file_location("kt_kernel_ext", found[0])
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            sys.modules["kt_kernel_ext"] = module
            spec.loader.exec_module(module)
            return module
    version = ".".join(map(str, sys.version_info[:2]))
    msg = f"kt.py: {directory} has no extension for this processor and Python {version}"
    raise SystemExit(msg)


class Peer:
    """Layers of one method in one worker pool."""

    def __init__(
        self, extension: ModuleType, method: str, shape: list[int], threads: int, nodes: int
    ) -> None:
        self.hidden, self.intermediate, self.experts, self.top_k = shape
        self.method = method
        self.extension = extension
        moe = extension.moe
        self.maker = next((getattr(moe, n) for n in CLASSES[method] if hasattr(moe, n)), None)
        if self.maker is None:
            msg = f"kt.py: {extension.__cpu_variant__} has no {method} ({', '.join(CLASSES[method])})"
            raise SystemExit(msg)
        pool = extension.WorkerPoolConfig()
        pool.subpool_count = nodes
        pool.subpool_numa_map = list(range(nodes))
        pool.subpool_thread_count = [threads // nodes + (node < threads % nodes) for node in range(nodes)]
        self.pool = extension.CPUInfer(pool)
        self.random = np.random.default_rng(0)
        self.layers: list[Any] = []
        self.weights: list[npt.NDArray[Any]] = []

    def add_layer(self) -> None:
        """Random weights. Some methods copy them, others go on reading them where they are: so they stay."""
        e, h, i = self.experts, self.hidden, self.intermediate
        config = self.extension.moe.MOEConfig(e, self.top_k, h, i)
        config.layer_idx = len(self.layers)
        config.pool = self.pool.backend_
        config.max_len = LONGEST
        for name, rows, columns in (("gate", i, h), ("up", i, h), ("down", h, i)):
            codes = np.tile(self.codes(rows, columns).reshape(-1), (e, 1))
            scales = np.tile(self.scales(rows, columns).reshape(-1), (e, 1))
            self.weights += [codes, scales]
            setattr(config, f"{name}_proj", codes.ctypes.data)
            if self.method not in GGML_TYPES and not self.method.startswith("AMX"):
                setattr(config, f"{name}_projs", [[row.ctypes.data for row in codes]])
                pointers = [row.ctypes.data if row.size else 0 for row in scales]
                setattr(config, f"{name}_scales", [pointers])
        if self.method in GGML_TYPES:
            # As kt_kernel/utils/llamafile.py sets them.
            kind = self.extension.kvcache.ggml_type
            config.gate_type = config.up_type = config.down_type = kind(GGML_TYPES[self.method])
            config.hidden_type = kind(BF16_GGML_TYPE)
            config.m_block, config.group_min_len, config.group_max_len = 32, 10, LONGEST
        if self.method in QUANTS:
            config.quant_config.bits, config.quant_config.group_size = QUANTS[self.method]
            config.quant_config.zero_point = False
        layer = self.maker(config)
        self.pool.submit(layer.load_weights_task())
        self.pool.sync()
        self.layers.append(layer)

    def codes(self, rows: int, columns: int) -> npt.NDArray[Any]:
        """One expert's matrix in the method's own form."""
        raw = np.frombuffer(self.random.bytes(2 * rows * columns), np.uint16).reshape(rows, columns)
        if self.method == "BF16" or self.method.startswith("AMX"):
            return (raw & np.uint16(0x807F)) | np.uint16(0x3B80)
        if self.method in ("RAWINT4", "MXFP4"):
            return np.ascontiguousarray(raw.view(np.uint8)[:, : columns // 2])
        if self.method == "FP8":
            return np.ascontiguousarray(raw.view(np.uint8)[:, :columns]) & np.uint8(0xB7)
        # GGML blocks begin with scales in f16; 2^-8 everywhere, the rest random.
        block, size, scales = {"Q4_0": (32, 18, 1), "Q8_0": (32, 34, 1), "Q4_K": (256, 144, 2)}[self.method]
        blocks = np.frombuffer(self.random.bytes(rows * columns // block * size), np.uint8).copy()
        blocks = blocks.reshape(-1, size)
        blocks[:, : 2 * scales] = np.tile(np.array([0x1C00], np.uint16), scales).view(np.uint8)
        return blocks

    def scales(self, rows: int, columns: int) -> npt.NDArray[Any]:
        """One expert's scales, 2^-6; empty for a method without."""
        if self.method in ("RAWINT4", "MXFP4"):
            return np.full((rows, columns // 32), 0x3C80, np.uint16)
        if self.method == "FP8":
            return np.full((-(-rows // 128), -(-columns // 128)), 1 / 64, np.float32)
        return np.empty(0, np.float32)

    def measure(self, batch: int, seconds: float) -> dict[str, float]:
        """Seconds of a layer and the bytes of the experts chosen, each once."""
        hidden = (self.random.standard_normal((batch, self.hidden), np.float32).view(np.uint32) >> 16).astype(
            np.uint16
        )
        out = np.zeros_like(hidden)
        weights = np.full((batch, self.top_k), 1 / self.top_k, np.float32)
        size = np.array([batch], np.int32)
        ids = np.empty((batch, self.top_k), np.int64)
        expert_bytes = 3 * self.hidden * self.intermediate * BITS[self.method] / 8
        times: list[float] = []
        unique: list[int] = []
        step, warm = 0, False
        while not times or (sum(times) < seconds and len(times) < 10000):
            keys = self.random.random((batch, self.experts), np.float32)
            ids[:] = keys.argpartition(self.top_k - 1)[:, : self.top_k]
            layer = self.layers[step % len(self.layers)]
            step += 1
            task = layer.forward_task(
                *(size.ctypes.data, self.top_k, ids.ctypes.data, weights.ctypes.data),
                *(hidden.ctypes.data, out.ctypes.data, False),
            )
            began = time.perf_counter()
            self.pool.submit(task)
            self.pool.sync()
            took = time.perf_counter() - began
            if step <= len(self.layers) and not warm and took < seconds:
                warm = step == len(self.layers)
                continue
            times.append(took)
            unique.append(int(np.unique(ids).size))
        if not out.any():
            msg = "kt.py: the output is zero, so nothing was computed"
            raise SystemExit(msg)
        return {
            "batch": batch,
            "seconds": float(np.median(times)),
            "low": min(times),
            "high": max(times),
            "bytes": float(np.mean(unique)) * expert_bytes,
        }


def main() -> None:
    """Measure and print."""
    directory, method = Path(sys.argv[1]), sys.argv[2]
    *shape, layers, threads, nodes = map(int, sys.argv[3:10])
    seconds = float(sys.argv[10])
    extension = load(directory)
    peer = Peer(extension, method, shape, threads, nodes)
    print(f"{extension.__cpu_variant__}, {peer.maker.__name__}", file=sys.stderr)
    for _ in range(layers):
        peer.add_layer()
    for line in sys.stdin:
        print(json.dumps(peer.measure(int(line), seconds)), flush=True)


if __name__ == "__main__":
    main()
