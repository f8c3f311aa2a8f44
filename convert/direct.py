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

# What every disk's direct writes are content with, in memory and in the file.
PAGE: Final = 4096

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
        self._direct: int | None = None
        try:
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            stack.callback(os.close, self._direct)
        except OSError as error:
            _require_refusal(error)

    def write(self, data: Bytes, offset: int) -> None:
        """Write contiguous bytes, directly where they lie in memory as in the file (`page_offset`)."""
        address = data.ctypes.data
        begin = min(-offset % PAGE, len(data))
        end = begin + (len(data) - begin) // PAGE * PAGE
        # Taken once: another thread may find out meanwhile that the file system refuses.
        direct = self._direct
        if direct is None or begin == end or (address - offset) % PAGE:
            pwrite_all(self.fd, data.data, offset)
            return
        pwrite_all(self.fd, data[:begin].data, offset)
        try:
            pwrite_all(direct, data[begin:end].data, offset + begin)
        except OSError as error:
            # There are file systems that find out only now that they cannot.
            _require_refusal(error)
            self._direct = None
            pwrite_all(self.fd, data[begin:end].data, offset + begin)
        pwrite_all(self.fd, data[end:].data, offset + end)

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
