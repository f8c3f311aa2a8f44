"""Bytes that cross between NUMA nodes, counted from the placement: inputs out, partial sums back.

Weights never cross: each unit is read by its node. Shown as a share of the expert bytes that a decode step of
one token reads, and with the batch from which the share is above 3 %.
"""

import json
from dataclasses import dataclass

import machine

from lsg import _core
from lsg._core import Dtype, LayerSpec, PanelFormat, ScaleDtype
from lsg.runtime.placement import shares

NODES = (2, 4, 8)
LIMIT = 0.03
MAX_BATCH = 4096
INT4 = PanelFormat(Dtype.INT4, ScaleDtype.BF16, scale_k=32)
# An int8 code for each input, and a float scale and an integer sum for each group of 32.
INPUT_BYTES = 1 + 8 / 32
SUM_BYTES = 4


@dataclass(frozen=True)
class Model:
    """One MoE layer of a model; hidden is what the routed experts see."""

    name: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    gated: bool = True


MODELS = (
    Model("Qwen3-Coder-Next, Qwen3-Next-80B-A3B", 2048, 512, 512, 10),
    Model("Qwen3-Coder-30B-A3B, Qwen3-VL-30B-A3B", 2048, 768, 128, 8),
    Model("Qwen3.5/3.6-35B-A3B", 2048, 512, 256, 8),
    Model("Qwen3.5-122B-A10B", 3072, 1024, 256, 8),
    Model("Qwen3.5-397B-A17B", 4096, 1024, 512, 10),
    Model("Qwen3.8-Flash-Next", 2560, 640, 512, 10),
    Model("MiniMax-M2.1", 3072, 1536, 256, 8),
    Model("MiniMax-M3", 6144, 3072, 128, 4),
    Model("GLM-4.7", 5120, 1536, 160, 8),
    Model("GLM-4.7-Flash", 2048, 1536, 64, 4),
    Model("GLM-4.6V", 4096, 1408, 128, 8),
    Model("GLM-5", 6144, 2048, 256, 8),
    Model("GLM-5.3-Flash", 4096, 2048, 288, 8),
    Model("Kimi-K2.5", 7168, 2048, 384, 8),
    Model("Kimi-K3", 3584, 3072, 896, 16),
    Model("DeepSeek-V3.2", 7168, 2048, 256, 8),
    Model("DeepSeek-V4-Flash", 4096, 2048, 256, 6),
    Model("DeepSeek-V4-Pro", 7168, 3072, 384, 6),
    Model("DeepSeek-V4.1-Flash", 5120, 2304, 384, 6),
    Model("gpt-oss-120b", 2880, 2880, 128, 4),
    Model("MiMo-V2-Flash", 4096, 2048, 256, 8),
    Model("Step-3.7-Flash", 4096, 1280, 288, 8),
    Model("gemma-4-26B-A4B", 2816, 704, 128, 8),
    Model("Nemotron-3-Super-120B", 1024, 2688, 512, 22, gated=False),
)


def main() -> None:
    """Count, and write benchmarks/results/cross_node.json."""
    rows = []
    for model in MODELS:
        spec = _spec(model)
        crossing = {nodes: _crossing_bytes(model, spec, nodes) for nodes in NODES}
        rows.append(
            {
                "model": model.name,
                "units": spec.num_units,
                "expert_bytes": round(_expert_bytes(model, spec, 1)),
                "crossing_bytes": {str(nodes): round(count) for nodes, count in crossing.items()},
                "share_at_1": {
                    str(nodes): float(f"{count / _expert_bytes(model, spec, 1):.3g}")
                    for nodes, count in crossing.items()
                },
                "batch_above_limit": {
                    str(nodes): _first_above(model, spec, count) for nodes, count in crossing.items()
                },
            }
        )
    body = {"format": "int4", "limit": LIMIT, "max_batch": MAX_BATCH, "models": rows}
    path = machine.RESULTS / "cross_node.json"
    path.write_text(json.dumps(body, indent=1) + "\n")
    print(path.relative_to(machine.ROOT))


def _spec(model: Model) -> LayerSpec:
    return _core.LayerSpec(
        layer_index=0,
        num_experts=model.experts,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        gated=model.gated,
        gate_up=INT4,
        down=INT4,
    )


def _crossing_bytes(model: Model, spec: LayerSpec, nodes: int) -> float:
    """Of one token and one layer."""
    inputs = (nodes - 1) * model.hidden * INPUT_BYTES
    # Each output is added up on one node, which reads the other nodes' pieces; then the caller reads it.
    others = (nodes - 1) / nodes
    sums = (_pieces(spec.num_units, nodes) + 1) * others * model.hidden * SUM_BYTES
    return inputs + sums


def _pieces(units: int, nodes: int) -> int:
    """Partial sums that the nodes send: the largest subtrees of the sum over units inside their ranges."""

    def count(tree: tuple[int, int], part: tuple[int, int]) -> int:
        if tree[1] <= part[0] or part[1] <= tree[0] or tree[0] == tree[1]:
            return 0
        if part[0] <= tree[0] and tree[1] <= part[1]:
            return 1
        middle = tree[0] + (tree[1] - tree[0] + 1) // 2
        return count((tree[0], middle), part) + count((middle, tree[1]), part)

    total = begin = 0
    for size in shares(units, [1] * nodes):
        total += count((0, units), (begin, begin + size))
        begin += size
    return total


def _expert_bytes(model: Model, spec: LayerSpec, batch: int) -> float:
    """Read for a batch whose tokens choose at random: an expert once, however many chose it."""
    chosen = model.experts * (1 - (1 - model.top_k / model.experts) ** batch)
    return chosen * spec.num_units * spec.record_bytes


def _first_above(model: Model, spec: LayerSpec, per_token: float) -> int | None:
    """The first power of two whose batch crosses more than the limit."""
    batch = 1
    while batch <= MAX_BATCH:
        if batch * per_token > LIMIT * _expert_bytes(model, spec, batch):
            return batch
        batch *= 2
    return None


if __name__ == "__main__":
    main()
