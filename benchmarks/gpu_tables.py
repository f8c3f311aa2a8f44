"""The READMEs' tables of figures from a GPU host, from their result files' contents."""

from typing import Any

from markdown import table


def hand_over(result: dict[str, Any]) -> str:
    """What each way between a CUDA graph and the engine adds to a layer."""
    jobs = {"empty": "no expert", "A": "Qwen3-30B-A3B, int4"}
    # The one that is the default beside a GPU.
    spin_us = max(run["spin_us"] for run in result["runs"])
    rows = [
        [
            run["way"],
            jobs[run["job"]],
            str(run["batch"]),
            f"{run['engine_us']['median']:.0f}",
            f"{run['added_us']['median']:.1f} ({run['added_us']['low']:.1f} … {run['added_us']['high']:.1f})",
            f"{run['added_over_alone_us']:.0f}",
        ]
        for run in result["runs"]
        if run["job"] in jobs and run["spin_us"] == spin_us
    ]
    what = (
        f"{result['gpu']}, {result['machine']['cpu']}, {result['machine']['threads']} threads, commit "
        f"{result['machine']['commit']}. A captured graph of {result['layers']} layers, about 40 µs of GPU "
        f"work each, idle workers spinning for {spin_us} µs; the results are compared with the engine's own, "
        "bit for bit. Added: a layer's time, less the GPU work, less what the engine computed; beside it "
        "less what the engine takes when nothing else runs."
    )
    head = [
        "way",
        "experts",
        "tokens",
        "engine, µs",
        "added, µs",
        "added over the engine alone, µs",
    ]
    return table(what, head, rows)


def decode(result: dict[str, Any]) -> str:
    """Tokens per second of a served model, beside the engine's own time."""
    layers = result["layers"]
    rows = [
        [
            str(run["batch"]),
            f"{run['tokens_per_s']:.0f}",
            f"{run['engine_tokens_per_s']:.0f}",
            f"{100 * run['share_of_engine']:.0f} %",
            f"{run['engine_us'] / layers:.0f}",
            f"{run['between_layers_us']:.0f}",
            f"{run['between_steps_us']:.0f}",
        ]
        for run in result["runs"]
    ]
    idle, machine, between = result["idle"], result["machine"], result["between_layers"]
    first = result["runs"][0]
    # What is left when a hand-over takes no time at all.
    at_best = first["engine_us"] / (first["engine_us"] + layers * between["model"])
    what = (
        f"{result['gpu']}, {machine['cpu']}, {machine['threads']} engine threads, sglang {result['sglang']} "
        f"in CUDA graphs, commit {result['commit']}; hand-over by kernels, idle workers spinning for "
        f"{result['spin_us']} µs; Qwen3-30B-A3B's shape, {layers} layers of random int4 experts, all of them "
        "on the CPU. Bound: tokens/s if nothing but the engine took time. Between layers: from one layer's "
        "experts to the next one's; between steps: from the last layer's to the next token's first.\n\n"
        f"The timeline below shows where a gap of {between['gap']:.0f} µs goes at batch 1: "
        f"{between['to_gpu']:.1f} until sglang's first kernel starts, {between['model']:.1f} for its "
        f"{between['kernels']:.0f} kernels (norms, attention, router; {between['model_busy']:.1f} with one "
        f"running), {between['to_engine']:.1f} until the engine starts. Those kernels wait for one layer's "
        "experts and the next layer's wait for them, so nothing can hide them: with a hand-over that took no "
        f"time, batch 1 would reach {100 * at_best:.0f} % of the bound. Idle in it: GPU "
        f"{100 * idle['gpu']:.0f} %, engine {100 * idle['engine']:.0f} %, both {100 * idle['both']:.0f} %."
    )
    head = ["batch", "tokens/s", "bound", "of the bound"]
    head += ["engine, µs a layer", "between layers, µs", "between steps, µs"]
    return table(what, head, rows)


def overlap(result: dict[str, Any]) -> str:
    """How much of the GPU's work is under the engine's when layers have a shared expert."""
    run, idle = result["runs"][0], result["idle"]
    head = ["GPU work under the engine's", "GPU idle", "engine idle", "both", "tokens/s", "of the bound"]
    row = [f"{100 * share:.0f} %" for share in (result["gpu_under_engine"], *idle.values())]
    row += [f"{run['tokens_per_s']:.0f}", f"{100 * run['share_of_engine']:.0f} %"]
    what = (
        f"{result['gpu']}, commit {result['commit']}, batch 1; {result['layers']} layers in the shape of "
        "Qwen1.5-MoE-A2.7B, whose shared expert sglang puts on the stream beside its routed ones."
    )
    return table(what, head, [row])


def proof(result: dict[str, Any]) -> str:
    """Log-probabilities of stock sglang and of lsg against float32."""
    names = {
        "sglang": "stock sglang, BF16",
        "lsg_bf16": "lsg, BF16 experts, float activations",
        "lsg_bf16_ngram": "the same with n-gram speculation",
        "lsg_int4": "lsg, INT4 experts, int8 activations",
        "lsg_deterministic": "lsg, BF16 experts, with sglang's deterministic kernels",
    }
    rows = []
    for key, name in names.items():
        if key not in result:
            continue
        run = result[key]
        if "failed" in run:
            rows.append([name, f"failed: {run['failed']}", *[""] * 6])
            continue
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
        f"{result['gpu']}, sglang {result['sglang_version']}, torch {result['torch']}, commit "
        f"{result['commit']}, CUDA graphs on; a random BF16 Qwen3-MoE of "
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
        f"{result['where']}, commit {result['commit']}; a random BF16 Qwen3-MoE of {shape['layers']} layers, "
        "float activations. Each way's answers against transformers in float32: the largest deviation of a "
        "log-probability, of what rounding to bf16 explains, and all of them, root mean square, in standard "
        "deviations of it."
    )
    text = table(what, ["two processes", "same tokens", "largest deviation", "standard deviations"], rows)
    for size, found in result.get("decode", {}).items():
        machine, layers = found["machine"], found["layers"]
        rates = [
            [
                str(run["batch"]),
                f"{run['tokens_per_s']:.0f}",
                f"{run['engine_tokens_per_s']:.0f}",
                f"{100 * run['share_of_engine']:.0f} %",
                f"{run['engine_us'] / layers:.0f}",
                f"{run['beside_engine_us_per_layer']:.0f}",
            ]
            for run in found["runs"]
        ]
        what = (
            f"Decode with `--tp-size {size}` on {found['gpus']} × {found['gpu']} with "
            f"{machine['logical_cpus']} CPUs ({machine['cpu']}), Qwen3-30B-A3B's shape, int4, all experts on "
            "the CPU, all-reduce by NCCL:"
        )
        head = ["batch", "tokens/s", "bound", "of the bound", "engine, µs a layer", "beside it, µs a layer"]
        text += "\n" + table(what, head, rates)
    return text


def draft(result: dict[str, Any]) -> str:
    """Whether drafting with a model's own layer changes what it says."""
    pairs = {
        "drafting, against plain": "drafting_against_plain",
        "plain: all together, against each alone": "plain_together_against_alone",
        "drafting: all together, against each alone": "drafting_together_against_alone",
    }
    rows = [
        [
            what,
            f"{found['same']} of {found['requests']}",
            f"{found['log_prob_deviation_median']:.4f}, {found['log_prob_deviation_p99']:.3f}",
        ]
        for what, found in ((what, result[key]) for what, key in pairs.items())
    ]
    what = (
        f"{result['gpu']}, commit {result['commit']}; a small random GLM-4.7 whose draft layer lsg-convert "
        "packed with the model's own, `--speculative-algorithm EAGLE`, greedy requests with float "
        f"activations. Accepted of what was drafted: {100 * result['accepted_of_drafted']:.0f} %, because "
        "the weights are random."
    )
    return table(what, ["requests", "same text", "Δ log-prob: median, 99 %"], rows)
