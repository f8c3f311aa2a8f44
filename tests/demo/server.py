"""A running lsg-serve: started on a free local port, asked, and stopped with every process it started.

Nothing outlives the `with` block, whichever way it ends.
"""

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import openai

START_LIMIT_S = 300
STOP_LIMIT_S = 20
LOG_LINES = 30


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Reply:
    """A completion and what it took."""

    text: str
    tokens: int
    seconds: float


class Server:
    """lsg-serve as a context manager."""

    def __init__(self, program: Path, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.command = [str(program), str(model), "--host", "127.0.0.1", "--port", str(port)]
        # A proxy in the environment is never meant for this machine itself.
        self._http = httpx.Client(trust_env=False)

    def __enter__(self) -> "Server":
        with self.log.open("wb") as log:
            # A session of its own: launcher and workers form one process group, which can be stopped whole.
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()
        for sign, patience in ((signal.SIGTERM, STOP_LIMIT_S), (signal.SIGKILL, STOP_LIMIT_S)):
            if not self._signal(sign):
                return
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                self._process.poll()
                if not self._signal(0):
                    return
                time.sleep(0.1)

    def wait_until_ready(self) -> float:
        """Seconds from the start until the server answers. Raises DemoError if it never does."""
        while time.monotonic() < self._began + START_LIMIT_S:
            code = self._process.poll()
            if code is not None:
                raise DemoError(self._with_log(f"the server ended with exit code {code}"))
            try:
                if self._http.get(f"{self.url}/health", timeout=5).status_code == httpx.codes.OK:
                    return time.monotonic() - self._began
            except httpx.TransportError:
                # Not listening yet, or busy loading: ask again until the limit.
                pass
            time.sleep(0.3)
        raise DemoError(self._with_log(f"the server did not answer within {START_LIMIT_S} s"))

    def ask(self, question: str) -> Reply:
        """Greedy answer to one question through the OpenAI client."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", http_client=self._http, max_retries=0
        )
        began = time.monotonic()
        try:
            completion = client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=64,
                timeout=120,
            )
        except openai.OpenAIError as error:
            raise DemoError(self._with_log(f"the server did not answer {question!r}: {error}")) from error
        seconds = time.monotonic() - began
        text, usage = completion.choices[0].message.content, completion.usage
        if not text or usage is None:
            raise DemoError(self._with_log(f"the server's answer to {question!r} is empty"))
        return Reply(text.strip(), usage.completion_tokens, seconds)

    def _signal(self, sign: int) -> bool:
        """Signal the whole group; False when nothing of it is left."""
        try:
            os.killpg(self._process.pid, sign)
        except ProcessLookupError:
            return False
        return True

    def _with_log(self, message: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([*lines, "", f"{message}; the last lines of {self.log} are above"])
