"""What a conversion says while it runs; the only module that imports rich.

Invariant: standard output carries the result (a sentence, or JSON lines with --json), standard error all
else.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol, TextIO

# Seldom enough for a log file, often enough for someone who waits.
_PLAIN_SECONDS: Final = 10.0
_JSON_SECONDS: Final = 1.0


class Progress(Protocol):
    """Told of the work as it is done, by one thread at a time. Bytes are bytes of the source."""

    @property
    def advanced_bytes(self) -> int:
        """Bytes done since `begin`."""

    def begin(self, total_bytes: int, kept_bytes: int, work: str = "converting") -> None:
        """Work starts; an earlier run did `kept_bytes` of it."""

    def advance(self, nbytes: int) -> None:
        """That much more is done."""

    def say(self, sentence: str) -> None:
        """Something worth knowing that is not progress."""

    def close(self) -> None:
        """No more will be told; whatever is on the screen stays."""


class _Counter:
    """The counting that every Progress does."""

    def __init__(self) -> None:
        self.work = ""
        self.advanced_bytes = 0
        self.total_bytes = 0
        self.kept_bytes = 0
        self.began = time.monotonic()

    def begin(self, total_bytes: int, kept_bytes: int, work: str = "converting") -> None:
        self.work = work
        self.advanced_bytes = 0
        self.total_bytes = total_bytes
        self.kept_bytes = kept_bytes
        self.began = time.monotonic()

    def advance(self, nbytes: int) -> None:
        self.advanced_bytes += nbytes

    def close(self) -> None:
        """Nothing to close."""

    def state(self) -> dict[str, float]:
        """Where the work stands."""
        seconds = time.monotonic() - self.began
        rate = self.advanced_bytes / seconds if seconds else 0.0
        done = self.kept_bytes + self.advanced_bytes
        left = (self.total_bytes - done) / rate if rate else 0.0
        return {
            "done_bytes": done,
            "total_bytes": self.total_bytes,
            "gb_per_s": rate / 1e9,
            "seconds_left": left,
        }


class BarProgress(_Counter):
    """A bar with bytes, GB/s and the time left, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        # Imported here: a tenth of a run's start, for those who see the bar.
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task("", total=None)

    def begin(self, total_bytes: int, kept_bytes: int, work: str = "converting") -> None:
        """Show the bar."""
        super().begin(total_bytes, kept_bytes, work)
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(work, total=total_bytes, completed=kept_bytes)
        self._bar.start()

    def advance(self, nbytes: int) -> None:
        """Move the bar."""
        super().advance(nbytes)
        self._bar.advance(self._task, nbytes)

    def say(self, sentence: str) -> None:
        """Write it above the bar."""
        self._bar.console.print(sentence, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


class PlainProgress(_Counter):
    """A line now and then, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._next = 0.0

    def begin(self, total_bytes: int, kept_bytes: int, work: str = "converting") -> None:
        """Say what there is to do."""
        super().begin(total_bytes, kept_bytes, work)
        kept = f", {size_text(kept_bytes)} of it done by an earlier run" if kept_bytes else ""
        self._stream.write(f"{work} {size_text(total_bytes)}{kept}\n")
        self._stream.flush()
        self._next = self.began + _PLAIN_SECONDS

    def advance(self, nbytes: int) -> None:
        """Say where it stands, if the last time is long ago."""
        super().advance(nbytes)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_SECONDS
            state = self.state()
            self._stream.write(
                f"{size_text(state['done_bytes'])} of {size_text(state['total_bytes'])}, "
                f"{state['gb_per_s']:.2f} GB/s, {state['seconds_left']:.0f} s left\n"
            )
            self._stream.flush()

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._stream.write(sentence + "\n")
        self._stream.flush()


class JsonProgress(_Counter):
    """One JSON object a line, for programs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._next = 0.0

    def begin(self, total_bytes: int, kept_bytes: int, work: str = "converting") -> None:
        """Write the first object."""
        super().begin(total_bytes, kept_bytes, work)
        self._write()

    def advance(self, nbytes: int) -> None:
        """Write an object, if the last one is long ago."""
        super().advance(nbytes)
        if time.monotonic() >= self._next:
            self._write()

    def say(self, sentence: str) -> None:
        """An object of its own."""
        write_json(self._stream, "note", {"text": sentence})

    def _write(self) -> None:
        self._next = time.monotonic() + _JSON_SECONDS
        write_json(self._stream, "progress", {"work": self.work} | self.state())


def size_text(nbytes: float) -> str:
    """Bytes in words, in powers of 1000."""
    from rich import filesize

    return filesize.decimal(int(nbytes))


def make_progress(*, as_json: bool) -> Progress:
    """The right one for where the output goes."""
    if as_json:
        return JsonProgress(sys.stdout)
    return BarProgress(sys.stderr) if sys.stderr.isatty() else PlainProgress(sys.stderr)


def write_json(stream: TextIO, event: str, fields: Mapping[str, Any]) -> None:
    """One line of the --json output."""
    stream.write(json.dumps({"event": event, **fields}) + "\n")
    stream.flush()
