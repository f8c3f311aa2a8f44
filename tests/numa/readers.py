"""Which thread touches memory first: it is taken away, and userfaultfd tells who wants it back.

Invariant: the memory is private and anonymous; its content is gone afterwards, all reads as zeros.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable

from observe import checked

SYS_USERFAULTFD = 323
MADV_DONTNEED = 4
API = 0xAA
FEATURE_THREAD_ID = 1 << 8
REGISTER_MISSING = 1
PAGEFAULT = 0x12
# ioctl numbers of linux/userfaultfd.h: direction, size, type 0xAA, number.
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_WAKE = 0x8010AA02
UFFDIO_ZEROPAGE = 0xC020AA04
MESSAGE_BYTES = 32
# What a fault gives back: a page at a time would take an emulated machine minutes.
BLOCK = 16 * 4096

_libc = ctypes.CDLL(None, use_errno=True)


def first_readers(ranges: list[tuple[int, int]], work: Callable[[], object]) -> dict[int, int]:
    """Run `work`; the blocks of `ranges` that it touched, by address, with the first thread's id."""
    faults = checked(_libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK), "userfaultfd")
    fcntl.ioctl(faults, UFFDIO_API, struct.pack("QQQ", API, FEATURE_THREAD_ID, 0))
    for begin, end in ranges:
        address, size = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
        # What is locked in memory is not given up.
        checked(_libc.munlock(address, size), "munlock")
        checked(_libc.madvise(address, size, MADV_DONTNEED), "madvise")
        fcntl.ioctl(faults, UFFDIO_REGISTER, struct.pack("QQQQ", begin, end - begin, REGISTER_MISSING, 0))
    found: dict[int, int] = {}
    stop, stopped = os.pipe()
    witness = threading.Thread(target=_serve, args=(faults, stop, found))
    witness.start()
    try:
        work()
    finally:
        os.close(stopped)
        witness.join()
        os.close(stop)
        os.close(faults)
    return found


def _serve(faults: int, stop: int, found: dict[int, int]) -> None:
    """Give every block that is asked for, until the other end of `stop` is closed."""
    while stop not in select.select([faults, stop], [], [])[0]:
        try:
            message = os.read(faults, MESSAGE_BYTES)
        except BlockingIOError:
            # Whoever asked has it by now.
            continue
        event, address, thread = struct.unpack("=B15xQI4x", message)
        if event == PAGEFAULT:
            block = address // BLOCK * BLOCK
            found.setdefault(block, thread)
            # Another thread may have asked for it at the same time, and has it now.
            with contextlib.suppress(FileExistsError):
                fcntl.ioctl(faults, UFFDIO_ZEROPAGE, struct.pack("QQQq", block, BLOCK, 0, 0))
            fcntl.ioctl(faults, UFFDIO_WAKE, struct.pack("QQ", block, BLOCK))
