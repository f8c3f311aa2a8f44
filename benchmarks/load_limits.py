"""What limits a cold load: the disk, read past the page cache, and memory that nobody has used lately."""

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

READERS = 4
REQUEST_BYTES = 4 << 20
HUGE_PAGE_BYTES = 2 << 20
# Linux reports free memory to the hypervisor every two seconds.
NEW_MEMORY_S = 4.0


def drop(files: list[Path]) -> None:
    """Take the files out of the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_seconds(files: list[Path]) -> float:
    """Time to read the files once past the page cache, each in order, several requests at a time."""
    drop(files)
    requests = iter([(file, at) for file in files for at in range(0, file.stat().st_size, REQUEST_BYTES)])
    opened = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files}

    def read() -> None:
        buffer = memoryview(huge_pages(REQUEST_BYTES))
        buffer[:] = bytes(REQUEST_BYTES)
        for file, at in requests:
            os.preadv(opened[file], [buffer], at)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        for future in [pool.submit(read) for _ in range(READERS)]:
            future.result()
    took = time.perf_counter() - began
    for descriptor in opened.values():
        os.close(descriptor)
    return took


def new_memory_rate(nbytes: int) -> float:
    """Bytes a second that the threads can write into 2 MiB pages that had been free for long."""
    time.sleep(NEW_MEMORY_S)
    return nbytes / write_memory(nbytes)


def write_memory(nbytes: int) -> float:
    """Seconds in which all CPUs write so many bytes of memory in 2 MiB pages, which are free again then."""
    threads = os.cpu_count() or 1
    part = -(-nbytes // threads // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    parts = huge_pages(threads * part).view(np.uint64).reshape(threads, -1)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda each: each.fill(1), parts))
    return time.perf_counter() - began


def huge_pages(nbytes: int) -> npt.NDArray[np.uint8]:
    """Anonymous memory that begins with a page of 2 MiB and has no other, if there are any."""
    buffer = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(buffer, np.uint8)
    skipped = -array.ctypes.data % HUGE_PAGE_BYTES
    return array[skipped : skipped + nbytes]
