"""Files that are written past the page cache.

Through the cache, every byte is copied and its page found, marked and cleaned up again: measured on ext4, 0.3
to 1 GB/s at the price of both cores, against 2 GB/s at the price of a tenth of one.

Invariant: a page of the file is written either directly, and then whole, or through the cache, and then by
every write that touches it; so neither way overwrites what the other has just written.
"""

import errno
import mmap
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg._core import write_rows

# What every disk's direct writes are content with, in memory and in the file.
PAGE: Final = 4096
# No descriptor.
_NONE: Final = -1

Bytes = npt.NDArray[np.uint8]


class PreallocatedFile:
    """An open file of a fixed size; safe to write from several threads."""

    def __init__(self, path: Path, nbytes: int, stack: ExitStack) -> None:
        """Open it, or create it with its blocks allocated: a full disk shows here. `stack` closes it."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        stack.callback(os.close, self.fd)
        if os.fstat(self.fd).st_size != nbytes:
            os.ftruncate(self.fd, 0)
            if nbytes:
                os.posix_fallocate(self.fd, 0, nbytes)
            os.fsync(self.fd)
        self._direct = _NONE
        try:
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            stack.callback(os.close, self._direct)
        except OSError as error:
            _require_refusal(error)

    def write(self, rows: Bytes, offset: int, stride: int = 0) -> None:
        """Write rows, uint8 [count, nbytes], `stride` apart in the file; see `_core.write_rows`."""
        if not write_rows(self.fd, self._direct, rows, offset, stride):
            self._direct = _NONE

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self.fd)


def page_aligned(nbytes: int) -> Bytes:
    """Zeroed memory that begins at a page, in huge pages where the system has them: fewer to look up."""
    memory = mmap.mmap(-1, max(nbytes, 1))
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Pwrite without short writes."""
    while data:
        count = os.pwrite(fd, data, offset)
        data = data[count:]
        offset += count


def _require_refusal(error: OSError) -> None:
    """Raise any error that does not mean that the file system has no direct writes."""
    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
        raise error
