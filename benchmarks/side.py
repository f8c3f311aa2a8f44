"""A program that measures batches on request, and does nothing in between.

It reads a number of tokens a line and answers each with a line of JSON: {"batch", "seconds", …}. Until it is
asked it is stopped, so that nobody who waits by spinning disturbs another's turn.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

Cell = dict[str, Any]


class UnableError(Exception):
    """The program ended instead of answering; the message has its last words."""


class Side:
    """One such program."""

    def __init__(self, command: Sequence[object]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._stop()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def measure(self, batch: int) -> Cell:
        """Its answer for a batch; the first time, after it has made its layers. Raises UnableError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            print(batch, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._unable() from None
        for line in self._process.stdout:
            if line.startswith('{"batch"'):
                self._stop()
                return json.loads(line)
        raise self._unable()

    def _stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def _unable(self) -> UnableError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return UnableError(f"exit {code}: {said[-1] if said else 'it said nothing'}")
