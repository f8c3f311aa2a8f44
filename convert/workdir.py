"""OUT.partial: where a conversion lives until it is finished.

    OUT.partial/lock       held (flock) while a process works here
    OUT.partial/journal    what is finished
    OUT.partial/model/     the future OUT
    OUT.partial/download/  shards of the source that are needed for a while (--stream)

Invariant: OUT appears by one rename, when all of it is durable; before that it does not exist.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lsg import CapacityError, LsgError
from lsg.convert import journal

_LOCK: Final = "lock"
_MODEL: Final = "model"
_DOWNLOAD: Final = "download"
_ENTRIES: Final = {_LOCK, _MODEL, _DOWNLOAD, journal.FILE_NAME}


class WorkDirectory:
    """A locked work directory."""

    def __init__(self, out: Path, partial: Path, book: journal.Journal) -> None:
        self.out = out
        self.partial = partial
        self.model = partial / _MODEL
        self.download = partial / _DOWNLOAD
        self.journal = book

    def publish(self) -> None:
        """Make everything durable, give it its final name, remove the rest."""
        for directory, _, files in os.walk(self.model):
            for name in files:
                fsync(Path(directory) / name)
            fsync(Path(directory))
        _refuse_existing(self.out)
        self.model.rename(self.out)
        fsync(self.out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the work directory: it has served, or can never be continued."""
        shutil.rmtree(self.partial)


@contextmanager
def open_work(out: Path, identity: journal.Identity, *, restart: bool) -> Iterator[WorkDirectory]:
    """Create or reopen OUT.partial and hold its lock. Raises LsgError if it is in use or not for us."""
    partial = partial_of(out)
    with ExitStack() as stack:
        _lock(partial, stack)
        # Whoever held the lock before may have finished since our first look.
        _refuse_existing(out)
        if restart:
            (partial / journal.FILE_NAME).unlink(missing_ok=True)
            for name in (_MODEL, _DOWNLOAD):
                if (partial / name).exists():
                    shutil.rmtree(partial / name)
        book = journal.Journal(partial / journal.FILE_NAME, identity)
        stack.callback(book.close)
        difference = book.found.difference(identity) if book.found else ""
        if difference:
            msg = (
                f"{partial}: holds an unfinished conversion with {difference}; repeat that one to "
                "continue it, or add --restart to throw it away"
            )
            raise LsgError(msg)
        (partial / _MODEL).mkdir(exist_ok=True)
        (partial / _DOWNLOAD).mkdir(exist_ok=True)
        fsync(partial)
        yield WorkDirectory(out, partial, book)


def partial_of(out: Path) -> Path:
    """The work directory of an output directory: beside it, so that the last step is a rename."""
    return out.with_name(out.name + ".partial")


def unfinished(out: Path) -> journal.Identity | None:
    """The conversion that OUT.partial holds, if any. Raises LsgError."""
    return journal.last_identity(partial_of(out) / journal.FILE_NAME)


def check_place(source: Path, out: Path) -> None:
    """Refuse, before anything is written, an output that exists or cannot be made. Raises LsgError."""
    _refuse_existing(out)
    if not out.parent.is_dir():
        msg = f"{out.parent}: not a directory; create it first"
        raise LsgError(msg)
    if out.resolve().is_relative_to(source.resolve()):
        msg = f"{out}: lies inside the source directory {source}; choose a place outside of it"
        raise LsgError(msg)
    partial = partial_of(out)
    if partial.exists() and not (
        partial.is_dir() and {entry.name for entry in partial.iterdir()} <= _ENTRIES
    ):
        msg = f"{partial}: in the way, and not made by lsg-convert; remove it or choose another output"
        raise LsgError(msg)


def check_room(out: Path, needed_bytes: int) -> None:
    """Refuse when the disk has less room than the conversion still needs. Raises CapacityError."""
    taken = sum(
        os.lstat(Path(directory) / name).st_blocks * 512
        for directory, _, files in os.walk(partial_of(out))
        for name in files
    )
    free = shutil.disk_usage(out.parent).free
    if needed_bytes > free + taken:
        msg = (
            f"{out.parent}: the repacked model takes {_size(needed_bytes)}, "
            f"but only {_size(free + taken)} are free; make room or choose another disk"
        )
        raise CapacityError(msg)


def disk_full(work: WorkDirectory, needed_bytes: int) -> CapacityError:
    """What to say when the disk ran full in spite of `check_room`."""
    free = shutil.disk_usage(work.partial).free
    return CapacityError(
        f"{work.out.parent}: disk full, {_size(free)} free and the whole model takes "
        f"{_size(needed_bytes)}; what is done is kept: make room and run the same command again"
    )


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        msg = f"{out}: already exists; remove it or choose another output"
        raise LsgError(msg)


def _lock(partial: Path, stack: ExitStack) -> None:
    try:
        partial.mkdir(exist_ok=True)
    except OSError as error:
        msg = f"{partial}: cannot be made ({error.strerror}); choose another output"
        raise LsgError(msg) from error
    path = partial / _LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder may have finished and removed the file between our open and our lock.
        held = os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        msg = f"{partial}: another lsg-convert is working here; wait for it or choose another output"
        raise LsgError(msg)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


def fsync(path: Path) -> None:
    """Make a file, or a directory's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
