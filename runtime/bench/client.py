"""A server to measure: started or found, asked for decode steps at a fixed number of requests.

Invariant: a server that was started here is gone, with its whole process group, when the block ends.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from lsg import LsgError

START_SECONDS: Final = 600.0
STOP_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 300.0
# Ordinary tokens of any vocabulary.
TOKENS: Final = range(100, 250)


@dataclass(frozen=True)
class Decoded:
    """One run: requests at a time, tokens each, seconds from the last first token to the first last one."""

    requests: int
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """All requests' tokens together."""
        return self.tokens / self.seconds


class Server:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=ANSWER_SECONDS, limits=httpx.Limits())

    def up(self) -> bool:
        """Whether it answers its health check."""
        try:
            return self._client.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def decode(self, requests: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        """Decode `requests` prompts of different tokens at the same time.

        Drawn at random: a random model's greedy texts soon repeat themselves, and requests that read the same
        tokens share their experts.
        """
        arrivals: list[list[float]] = [[] for _ in range(requests)]
        errors: list[Exception] = []

        def ask(index: int) -> None:
            body = {
                "input_ids": [TOKENS[(7 * index + 3 * at) % len(TOKENS)] for at in range(prompt_tokens)],
                "sampling_params": {"max_new_tokens": new_tokens, "temperature": 1, "ignore_eos": True},
                "stream": True,
            }
            try:
                with self._client.stream("POST", "/generate", json=body) as answer:
                    answer.raise_for_status()
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            arrivals[index].append(time.perf_counter())
            except httpx.HTTPError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors or any(len(times) < 3 for times in arrivals):
            msg = f"the server did not answer {requests} requests of {new_tokens} tokens: {errors[:1]}"
            raise LsgError(msg)
        begin = max(times[0] for times in arrivals)
        end = min(times[-1] for times in arrivals)
        # sglang may send several tokens at once; between the two moments all requests ran side by side.
        sent = sum(new_tokens * sum(begin < at <= end for at in times) / len(times) for times in arrivals)
        return Decoded(requests, round(sent), end - begin)

    def profile(self, directory: Path, steps: int) -> None:
        """Let sglang's profiler watch the GPU for `steps` steps, into `directory`."""
        body: dict[str, Any] = {"output_dir": str(directory), "num_steps": steps, "activities": ["GPU"]}
        self._client.post("/start_profile", json=body).raise_for_status()


@contextmanager
def started(
    directory: Path, arguments: tuple[str, ...], environ: Mapping[str, str], log: Path
) -> Iterator[Server]:
    """Serve `directory` with lsg-serve on a free port; its output goes to `log`. Raises LsgError."""
    port = _free_port()
    command = [sys.executable, "-m", "lsg.runtime.cli", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **environ}
        )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.up():
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                msg = f"{directory}: the server did not come up; {log} ends with: {' '.join(last)}"
                raise LsgError(msg)
            time.sleep(0.5)
        yield server
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
