"""The README's tables of figures from a GPU host, from their result files' contents."""

from typing import Any

from markdown import table


def hand_over(result: dict[str, Any]) -> str:
    """What each way between a CUDA graph and the engine adds to a layer."""
    jobs = {"empty": "no expert", "A": "Qwen3-30B-A3B, int4"}
    rows = [
        [
            run["way"],
            jobs[run["job"]],
            str(run["batch"]),
            str(run["spin_us"]),
            f"{run['engine_us']['median']:.0f}",
            f"{run['added_us']['median']:.1f} ({run['added_us']['low']:.1f} … {run['added_us']['high']:.1f})",
            f"{run['added_over_alone_us']:.0f}",
        ]
        for run in result["runs"]
        if run["job"] in jobs
    ]
    what = (
        f"{result['gpu']}, {result['machine']['cpu']}, {result['machine']['threads']} threads, commit "
        f"{result['machine']['commit']}. A captured graph of {result['layers']} layers, about 40 µs of GPU "
        "work each; the results are compared with the engine's own, bit for bit. Added: a layer's time, less "
        "the GPU work, less what the engine computed; beside it less what the engine takes when nothing else "
        "runs."
    )
    head = [
        "way",
        "experts",
        "tokens",
        "spin, µs",
        "engine, µs",
        "added, µs",
        "added over the engine alone, µs",
    ]
    return table(what, head, rows)


def decode(result: dict[str, Any]) -> str:
    """Tokens per second of a served model, beside the engine's own time."""
    rows = [
        [
            str(run["batch"]),
            f"{run['tokens_per_s']:.0f}",
            f"{run['engine_tokens_per_s']:.0f}",
            f"{100 * run['share_of_engine']:.0f} %",
            f"{run['beside_engine_us_per_layer']:.0f}",
        ]
        for run in result["runs"]
    ]
    idle = result["idle"]
    what = (
        "H200, 16 Xeon cores, sglang 0.5.17 in CUDA graphs, hand-over by kernels, idle workers spinning for "
        f"{result['spin_us']} µs; Qwen3-30B-A3B's shape, {result['layers']} layers of random int4 experts, "
        "all of them on the CPU. Bound: tokens/s if nothing but the engine took time. Idle in the timeline "
        f"below: GPU {100 * idle['gpu']:.0f} %, engine {100 * idle['engine']:.0f} %, both "
        f"{100 * idle['both']:.0f} %."
    )
    return table(what, ["batch", "tokens/s", "bound", "of the bound", "beside the engine, µs a layer"], rows)


def proof(result: dict[str, Any]) -> str:
    """Log-probabilities of stock sglang and of lsg against float32."""
    names = {
        "sglang": "stock sglang, BF16",
        "lsg_bf16": "lsg, BF16 experts, float activations",
        "lsg_bf16_ngram": "the same with n-gram speculation",
        "lsg_int4": "lsg, INT4 experts, int8 activations",
    }
    rows = []
    for key, name in names.items():
        if key not in result:
            continue
        run = result[key]
        together = run["together_against_alone"]
        rows.append(
            [
                name,
                f"{run['log_prob_deviation_mean']:.3f}",
                f"{run['log_prob_deviation_median']:.3f}",
                f"{run['log_prob_deviation_p99']:.2f}",
                f"{100 * run['greedy_tokens_as_in_float32']:.0f} %",
                f"{together['same']} of {together['requests']}",
                f"{together['log_prob_deviation_median']:.3f}, {together['log_prob_deviation_p99']:.2f}",
                f"{run['start_seconds']:.0f}",
            ]
        )
    shape = result["shape"]
    what = (
        f"{result['gpu']}, torch {result['torch']}, CUDA graphs on; a random BF16 Qwen3-MoE of "
        f"{shape['layers']} layers, hidden size {shape['hidden']}, {shape['experts']} experts, top "
        f"{shape['top_k']}; {result['prompts']} prompts of {result['tokens_each']} tokens, full vocabulary. "
        "Each server against transformers in float32 on the weights it serves; then 64 requests at once, "
        "with aborts, against each of them alone."
    )
    head = [
        "server",
        "mean Δ log-prob",
        "median",
        "99 %",
        "greedy token as in float32",
        "same text together",
        "Δ log-prob together: median, 99 %",
        "start, s",
    ]
    return table(what, head, rows)


def parallel(result: dict[str, Any]) -> str:
    """Every way to spread over two processes, and decode rates of tensor parallelism."""
    rows = []
    for way, found in result["ways"].items():
        if "refused" in found:
            rows.append([way, f"refused: {found['refused'].partition(': ')[2]}", "", ""])
            continue
        same = f"{found['same_tokens']} of {found['prompts']}"
        rows.append([way, same, f"{100 * found['deviation_of_bound']:.0f} %", f"{found['sigmas']:.2f}"])
    shape = result["shape"]
    what = (
        f"{result['where']}; a random BF16 Qwen3-MoE of {shape['layers']} layers, float activations. Each "
        "way's answers against transformers in float32: the largest deviation of a log-probability, of what "
        "rounding to bf16 explains, and all of them, root mean square, in standard deviations of it."
    )
    text = table(what, ["two processes", "same tokens", "largest deviation", "standard deviations"], rows)
    sizes = result.get("decode", {})
    if not sizes:
        return text
    rates = [
        [str(runs[0]["batch"]), *(f"{run['tokens_per_s']:.0f}" for run in runs)]
        for runs in zip(*(found["runs"] for found in sizes.values()), strict=True)
    ]
    what = (
        "Decode on 2 × H200 with 32 Xeon cores, Qwen3-30B-A3B's shape, int4, all experts on the CPU, "
        "all-reduce by NCCL; tokens/s:"
    )
    return text + "\n" + table(what, ["batch", *(f"`--tp-size {size}`" for size in sizes)], rates)
