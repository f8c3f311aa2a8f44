"""Stock sglang against lsg on a GPU machine: `python tests/integration/gpu_proof.py --out DIR [ARGUMENT]...`.

Needs neither pytest nor a network. Makes a random checkpoint, repacks it to bf16 and int4, serves the
original with sglang and both repacks with lsg, and writes DIR/gpu_proof.json. All servers start together and
are asked one after the other, each for the same prompts, and for 64 requests singly and all at once.

Each server is judged by transformers in float32 on the weights it serves (int4: decoded from the layer files)
and on the tokens it generated itself. In bf16 a near-tie in a router now and then picks another expert, for
sglang as for lsg: what has to be seen is that lsg is as close to float32 as sglang is.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# A file run as a program has its own directory on the path; the packages are one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from integration import concurrency, reference  # noqa: E402
from integration.repack import convert  # noqa: E402
from integration.server import Server, lsg_serve, serve  # noqa: E402

from checkpoints import qwen3_moe  # noqa: E402

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 64, 32
SHAPE = {"layers": 6, "hidden": 1024, "intermediate": 384, "experts": 32, "top_k": 4}
# As in the published models; some GPU kernels take no smaller one.
qwen3_moe.HEAD_DIM = 128
ON_A_GPU = (
    "--attention-backend triton --sampling-backend pytorch --grammar-backend none --mem-fraction-static 0.3 "
    "--max-total-tokens 32768"
)
SERVERS = ("sglang", "lsg_bf16", "lsg_bf16_ngram", "lsg_int4")
GRAPHS = ["--cuda-graph-bs-decode", *map(str, (1, 2, 3, 4, 8, 16, 32, 64)), "--chunked-prefill-size", "256"]
NGRAM = ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4"]


def main() -> None:
    """Serve, compare, report."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for gpu_proof.json and the servers' logs"
    )
    parser.add_argument("--server", action="append", choices=SERVERS, help="only these")
    options, arguments = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        arguments = ON_A_GPU.split() + arguments
    with tempfile.TemporaryDirectory() as directory:
        arguments = [*arguments, "--dtype", "bfloat16"]
        report = prove(Path(directory), options.out, arguments, options.server or SERVERS)
    text = json.dumps(report, indent=1) + "\n"
    (options.out / "gpu_proof.json").write_text(text)
    sys.stdout.write(text)


def prove(directory: Path, out: Path, arguments: list[str], servers: Sequence[str]) -> dict[str, Any]:
    """The report: one entry for each server."""
    checkpoint = qwen3_moe.make_checkpoint(directory / "checkpoint", **SHAPE)
    truth = reference.load(checkpoint)
    draw = random.Random(0)
    vocab_size = truth.config.vocab_size
    prompts = [
        [draw.randrange(reference.FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(PROMPT_TOKENS)]
        for _ in range(PROMPTS)
    ]
    requests = concurrency.make_prompts(vocab_size, reference.FIRST_ORDINARY_TOKEN)
    stock = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(checkpoint)]
    stock += GRAPHS
    bf16 = [*lsg_serve(convert(checkpoint, directory / "bf16", "bf16")), "--activations", "float"]
    bf16 += GRAPHS
    int4 = [*lsg_serve(convert(checkpoint, directory / "int4", "int4")), *GRAPHS]
    commands = {"sglang": stock, "lsg_bf16": bf16, "lsg_bf16_ngram": [*bf16, *NGRAM], "lsg_int4": int4}
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "shape": SHAPE,
        "prompts": PROMPTS,
        "tokens_each": PROMPT_TOKENS + NEW_TOKENS,
    }
    stock_tokens: list[list[int]] = []
    plain: list[concurrency.Answer] = []
    with ExitStack() as stack, ThreadPoolExecutor(len(commands)) as pool:
        starting = {
            name: pool.submit(_start, stack, [*commands[name], *arguments], out / f"gpu_proof_{name}.log")
            for name in commands
            if name in servers
        }
        for name, start in starting.items():
            logging.info("waiting for %s", name)
            try:
                server, start_seconds = start.result()
            except RuntimeError as error:
                logging.error("%s: %s", name, error)
                report[name] = {"failed": str(error).splitlines()[-1]}
                continue
            answers = [server.log_probs(prompt, NEW_TOKENS, vocab_size) for prompt in prompts]
            alone = concurrency.alone(server, requests)
            together = concurrency.together(server, requests)
            if name == "lsg_bf16":
                plain = alone
            if name == "lsg_int4":
                reference.replace_experts(truth, directory / "int4")
            tokens = [continuation for continuation, _ in answers]
            stock_tokens = stock_tokens or tokens
            report[name] = {
                "start_seconds": round(start_seconds, 1),
                **deviations(truth, prompts, answers),
                "greedy_tokens_shared_with_sglang": sum(map(shared, stock_tokens, tokens)) / PROMPTS,
                "together_against_alone": concurrency.compare(together, alone),
                "graphs": "cuda graph: True" in (out / f"gpu_proof_{name}.log").read_text(errors="replace"),
            }
            if name == "lsg_bf16_ngram" and plain:
                report[name]["alone_against_without_speculation"] = concurrency.compare(alone, plain)
            if name != "sglang" and "sglang" in report:
                report[name]["no_worse_than_sglang"] = concurrency.no_worse(
                    report[name]["together_against_alone"], report["sglang"]["together_against_alone"]
                )
            logging.info("%s: %s", name, report[name])
            # What a later server does not answer must not cost what is known of this one.
            (out / "gpu_proof.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _start(stack: ExitStack, command: list[str], log: Path) -> tuple[Server, float]:
    started = time.monotonic()
    server = stack.enter_context(serve(command, log=log))
    return server, time.monotonic() - started


def deviations(
    truth: torch.nn.Module, prompts: list[list[int]], answers: list[tuple[list[int], torch.Tensor]]
) -> dict[str, float]:
    """How far served log-probabilities are from float32, and how often the served token is its choice too."""
    differences, chosen = [], 0
    for prompt, (tokens, log_probs) in zip(prompts, answers, strict=True):
        exact = reference.log_probs_of(truth, (prompt + tokens)[:-1])
        differences.append((exact - log_probs).abs().flatten())
        chosen += int((exact[PROMPT_TOKENS - 1 :].argmax(-1) == torch.tensor(tokens)).sum())
    # torch.quantile takes no more than 2^24 values.
    ordered = torch.cat(differences).sort().values
    return {
        "log_prob_deviation_mean": float(ordered.mean()),
        "log_prob_deviation_median": float(ordered[len(ordered) // 2]),
        "log_prob_deviation_p99": float(ordered[len(ordered) * 99 // 100]),
        "log_prob_deviation_max": float(ordered[-1]),
        "greedy_tokens_as_in_float32": chosen / (PROMPTS * NEW_TOKENS),
    }


def shared(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))


if __name__ == "__main__":
    main()
