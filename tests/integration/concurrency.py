"""Many requests at once against each of them alone: mixed lengths, shared beginnings, some given up halfway.

What may differ: GPU kernels and the engine add in an order that depends on the batch, so a bf16 value now and
then rounds to its other neighbour, and a near-tie between two tokens falls the other way. From there on a
greedy continuation is another text. Whatever serves, the same requests are therefore also sent to stock
sglang: what has to be seen is that no more requests change here than there.
"""

import math
import random
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

from integration.server import Server

REQUESTS, ABORTED = 64, 12
SHORTEST, LONGEST, SHARED = 8, 400, 96
NEW_TOKENS = 32


@dataclass(frozen=True)
class Answer:
    """Greedy tokens and the log-probability of each."""

    tokens: list[int]
    log_probs: list[float]


def make_prompts(vocab_size: int, first_token: int) -> list[list[int]]:
    """Prompts of all lengths; every third begins like the others of its kind, for the radix cache."""
    draw = random.Random(1)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(first_token, vocab_size) for _ in range(count)]

    common = tokens(SHARED)
    prompts = [tokens(draw.randint(SHORTEST, LONGEST)) for _ in range(REQUESTS)]
    return [common + prompt[:64] if at % 3 == 0 else prompt for at, prompt in enumerate(prompts)]


def ask(server: Server, prompt: list[int], rid: str) -> Answer:
    """One request."""
    reply = server.post(
        "/generate",
        {
            "rid": rid,
            "input_ids": prompt,
            "sampling_params": {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
            "return_logprob": True,
        },
    )
    chosen = reply["meta_info"]["output_token_logprobs"]
    return Answer(reply["output_ids"], [entry[0] for entry in chosen])


def alone(server: Server, prompts: list[list[int]]) -> list[Answer]:
    """One after the other, each with a cold prefix cache."""
    answers = []
    for at, prompt in enumerate(prompts):
        urllib.request.urlopen(
            urllib.request.Request(server.base_url + "/flush_cache", method="POST"), timeout=60
        ).close()
        answers.append(ask(server, prompt, f"alone-{at}"))
    return answers


def together(server: Server, prompts: list[list[int]]) -> list[Answer]:
    """All within a second, and among them requests that are aborted while they decode."""
    draw = random.Random(2)
    answers: dict[int, Answer] = {}
    failures: list[Exception] = []

    def run(at: int) -> None:
        time.sleep(draw.random())
        try:
            answers[at] = ask(server, prompts[at], f"together-{at}")
        except Exception as error:
            failures.append(error)

    def give_up(at: int) -> None:
        time.sleep(draw.random())
        rid = f"aborted-{at}"
        body: dict[str, Any] = {
            "rid": rid,
            "input_ids": prompts[at],
            "sampling_params": {"max_new_tokens": 1000, "temperature": 0, "ignore_eos": True},
        }
        asking = threading.Thread(target=server.post, args=("/generate", body))
        asking.start()
        time.sleep(0.5 + draw.random())
        request = urllib.request.Request(
            server.base_url + "/abort_request",
            f'{{"rid": "{rid}"}}'.encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()
        asking.join()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(prompts))]
    threads += [threading.Thread(target=give_up, args=(at,)) for at in range(ABORTED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [answers[at] for at in range(len(prompts))]


def compare(first: list[Answer], second: list[Answer]) -> dict[str, float]:
    """How many requests got the same tokens, and how far log-probabilities are apart until they part."""
    same, differences = 0, []
    for one, other in zip(first, second, strict=True):
        parted = next(
            (at for at, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)) if a != b), None
        )
        same += parted is None
        differences += [
            abs(a - b) for a, b in zip(one.log_probs[:parted], other.log_probs[:parted], strict=True)
        ]
    differences.sort()
    return {
        "requests": len(first),
        "same": same,
        "log_prob_deviation_median": differences[len(differences) // 2],
        "log_prob_deviation_p99": differences[len(differences) * 99 // 100],
        "log_prob_deviation_max": differences[-1],
    }


def no_worse(here: dict[str, float], there: dict[str, float]) -> bool:
    """Whether as many requests stay the same as there, but for three standard deviations of such counts."""
    shares = [found["same"] / found["requests"] for found in (here, there)]
    pooled = sum(shares) / 2
    deviation = math.sqrt(2 * pooled * (1 - pooled) / here["requests"])
    return shares[0] >= shares[1] - 3 * deviation
