"""Stock sglang against lsg on a GPU machine: `python tests/integration/gpu_proof.py --out DIR [ARGUMENT]...`.

Needs neither pytest nor a network. Makes a random checkpoint, repacks it to bf16 and int4, serves the
original with sglang and both repacks with lsg, and writes DIR/gpu_proof.json. All servers run together; each
is asked for the same prompts, and for 64 requests singly and all at once.

Each server is judged by transformers in float32 on the weights it serves (int4: decoded from the layer files)
and on the tokens it generated itself. In bf16 a near-tie in a router now and then picks another expert, for
sglang as for lsg: what has to be seen is that lsg is as close to float32 as sglang is. With sglang's
deterministic kernels no such thing may happen between a request alone and among others: their tokens and
log-probabilities have to be the same, bit by bit.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A file run as a program has its own directory on the path; the packages are one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from integration import concurrency, reference  # noqa: E402
from integration.repack import convert  # noqa: E402
from integration.server import lsg_serve, serve  # noqa: E402

from checkpoints import qwen3_moe  # noqa: E402

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 64, 32
SHAPE = {"layers": 6, "hidden": 1024, "intermediate": 384, "experts": 32, "top_k": 4}
# As in the published models; some GPU kernels take no smaller one.
qwen3_moe.HEAD_DIM = 128
ON_A_GPU = (
    "--attention-backend triton --sampling-backend pytorch --grammar-backend none --mem-fraction-static 0.5 "
    "--max-total-tokens 32768 --sleep-on-idle"
)
# All servers are asked at the same time: few workers each, and none of them bound to another server's core.
SIDE_BY_SIDE = ["--threads", "3", "--bind", "node"]
SERVERS = ("sglang", "lsg_bf16", "lsg_bf16_ngram", "lsg_int4", "lsg_deterministic")
GRAPHS = ["--cuda-graph-bs-decode", *map(str, (1, 2, 3, 4, 8, 16, 32, 64)), "--chunked-prefill-size", "256"]
NGRAM = ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4"]
# Up to so many tokens the engine's bits do not depend on the rest of the batch (engine's one pass).
ONE_PASS = 128
# sglang cuts prompts at multiples of this only, for its kernels to give the same bits; more than a chunk, and
# a long prompt would wait for ever.
ALIGNED = ["env", f"SGLANG_TRITON_PREFILL_TRUNCATION_ALIGN_SIZE={ONE_PASS}"]
DETERMINISTIC = ["--enable-deterministic-inference", "--chunked-prefill-size", str(ONE_PASS)]


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
    repacked = {kind: convert(checkpoint, directory / kind, kind) for kind in ("bf16", "int4")}
    bf16 = [*lsg_serve(repacked["bf16"]), "--activations", "float", *SIDE_BY_SIDE, *GRAPHS]
    int4 = [*lsg_serve(repacked["int4"]), *SIDE_BY_SIDE, *GRAPHS]
    commands = {
        "sglang": stock,
        "lsg_bf16": bf16,
        "lsg_bf16_ngram": [*bf16, *NGRAM],
        "lsg_int4": int4,
        "lsg_deterministic": [*ALIGNED, *bf16, *DETERMINISTIC],
    }
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "sglang_version": version("sglang"),
        "shape": SHAPE,
        "prompts": PROMPTS,
        "tokens_each": PROMPT_TOKENS + NEW_TOKENS,
    }
    all_answers: dict[str, Answers] = {}
    with ThreadPoolExecutor(len(servers)) as pool:
        asking = {
            pool.submit(
                _ask,
                commands[name],
                arguments,
                out / f"gpu_proof_{name}.log",
                prompts,
                requests,
                vocab_size,
            ): name
            for name in servers
        }
        for done in as_completed(asking):
            name = asking[done]
            try:
                answers = all_answers[name] = done.result()
            except (RuntimeError, OSError) as error:
                logging.error("%s: %s", name, error)
                report[name] = {"failed": str(error).splitlines()[-1]}
                continue
            judge = truth
            if name == "lsg_int4":
                judge = reference.load(checkpoint)
                reference.replace_experts(judge, repacked["int4"])
            report[name] = {
                "start_seconds": round(answers.start_seconds, 1),
                **deviations(judge, prompts, answers.log_probs),
                "together_against_alone": concurrency.compare(answers.together, answers.alone),
                "graphs": "cuda graph: True" in (out / f"gpu_proof_{name}.log").read_text(errors="replace"),
            }
            logging.info("%s: %s", name, report[name])
            _relate(report, all_answers)
            # What a later server does not answer must not cost what is known of this one.
            (out / "gpu_proof.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


@dataclass(frozen=True)
class Answers:
    """What a server said.

    log_probs: tokens and distributions for each prompt; alone, together: to the requests.
    """

    start_seconds: float
    log_probs: list[tuple[list[int], torch.Tensor]]
    alone: list[concurrency.Answer]
    together: list[concurrency.Answer]


def _ask(
    command: list[str],
    arguments: list[str],
    log: Path,
    prompts: list[list[int]],
    requests: list[list[int]],
    vocab_size: int,
) -> Answers:
    started = time.monotonic()
    with serve(command, *arguments, log=log) as server:
        seconds = time.monotonic() - started
        logging.info("%s: up after %.0f s", log.stem, seconds)
        log_probs = [server.log_probs(prompt, NEW_TOKENS, vocab_size) for prompt in prompts]
        return Answers(
            seconds, log_probs, concurrency.alone(server, requests), concurrency.together(server, requests)
        )


def _relate(report: dict[str, Any], answers: dict[str, Answers]) -> None:
    """What can be said of two servers, of those that have answered."""
    stock, plain = answers.get("sglang"), answers.get("lsg_bf16")
    for name, mine in answers.items():
        if stock:
            pairs = zip(stock.log_probs, mine.log_probs, strict=True)
            common = sum(shared(theirs, ours) for (theirs, _), (ours, _) in pairs)
            report[name]["greedy_tokens_shared_with_sglang"] = common / PROMPTS
            report[name]["no_worse_than_sglang"] = concurrency.no_worse(
                report[name]["together_against_alone"], report["sglang"]["together_against_alone"]
            )
        if name == "lsg_bf16_ngram" and plain:
            report[name]["alone_against_without_speculation"] = concurrency.compare(mine.alone, plain.alone)


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
