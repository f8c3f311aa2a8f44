"""Real servers for tests: started as a user would, asked over HTTP, gone with their whole process group."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

START_SECONDS = 240
STOP_SECONDS = 20
# A small KV cache and no warm-up request: what a start costs is then mostly imports.
QUICK_START = ("--max-total-tokens", "4096", "--skip-server-warmup", "--random-seed", "0")


class Server:
    """A running server's address."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON, get JSON."""
        request = urllib.request.Request(
            self.base_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def answers(self) -> bool:
        """Whether it is up: sglang's health check runs a token through the model."""
        try:
            with urllib.request.urlopen(self.base_url + "/health", timeout=60) as response:
                return response.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def log_probs(
        self, prompt: list[int], new_tokens: int, vocab_size: int
    ) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens, and the distribution after each token but the last: [positions, vocabulary]."""
        reply = self.post(
            "/generate",
            {
                "input_ids": prompt,
                "sampling_params": {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True},
                "return_logprob": True,
                "logprob_start_len": 0,
                "top_logprobs_num": vocab_size,
            },
        )
        meta = reply["meta_info"]
        rows = [*meta["input_top_logprobs"][1:], *meta["output_top_logprobs"]]
        out = torch.full((len(rows), vocab_size), torch.nan, dtype=torch.float64)
        for position, row in enumerate(rows):
            for log_prob, token, _ in row:
                out[position, token] = log_prob
        return reply["output_ids"], out


def lsg_serve(directory: Path) -> list[str]:
    """The command that serves a directory."""
    return [sys.executable, "-m", "lsg.runtime.cli", str(directory)]


@contextmanager
def serve(command: list[str], *arguments: str, log: Path) -> Iterator[Server]:
    """Run the command with an address to listen on until the block ends."""
    port = free_port()
    command = [*command, "--host", "127.0.0.1", "--port", str(port), *QUICK_START, *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    server = Server(port)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-4000:]
                msg = f"the server did not come up (exit code {process.poll()}):\n{text}"
                raise RuntimeError(msg)
            time.sleep(0.5)
        yield server
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_SECONDS)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
