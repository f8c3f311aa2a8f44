"""Direct writes beside cached ones: every byte arrives, whichever way its page goes."""

import errno
import fcntl
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from lsg.convert.direct import PAGE, PreallocatedFile, page_aligned, pwrite_all

SIZE = 12 * PAGE
# Neighbours whose borders are at the edges of pages and inside; one of them does not fill a page.
BORDERS = [0, 3 * PAGE, 5 * PAGE + 17, 5 * PAGE + 900, 9 * PAGE - 1, SIZE]


@pytest.fixture
def writes(monkeypatch):
    """Whether each write was a direct one, and its offset and length."""
    real, seen = os.pwrite, []

    def pwrite(fd, data, offset):
        seen.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT), offset, len(data)))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return seen


def write_in_runs(path, data, misplaced=0):
    memory = page_aligned(SIZE + PAGE)
    with ExitStack() as stack:
        file = PreallocatedFile(path, SIZE, stack)
        for begin, end in list(itertools.pairwise(BORDERS))[::-1]:
            place = begin % PAGE + misplaced
            memory[place : place + end - begin] = data[begin:end]
            file.write(memory[place : place + end - begin], begin)
        file.sync()
        found = np.fromfile(path, np.uint8)
    np.testing.assert_array_equal(found, data)


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


def test_whole_pages_go_directly_and_the_others_through_the_cache(tmp_path, data, writes):
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writes")
    write_in_runs(tmp_path / "file", data)
    ways = [set() for _ in range(SIZE // PAGE)]
    for direct, offset, length in writes:
        for page in range(offset // PAGE, -(-(offset + length) // PAGE)):
            ways[page].add(direct)
    assert [sorted(way) for way in ways] == [[page not in (5, 8)] for page in range(SIZE // PAGE)]


def test_memory_that_lies_otherwise_goes_through_the_cache(tmp_path, data, writes):
    write_in_runs(tmp_path / "file", data, misplaced=64)
    assert not any(direct for direct, _, _ in writes)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("late", [False, True])
def test_a_file_system_may_refuse_direct_writes(tmp_path, data, monkeypatch, code, late):
    name = "pwrite" if late else "open"
    real = getattr(os, name)

    def refuse(first, *args):
        flags = fcntl.fcntl(first, fcntl.F_GETFL) if late else args[0]
        if flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return real(first, *args)

    monkeypatch.setattr(os, name, refuse)
    write_in_runs(tmp_path / "file", data)


def test_a_refusal_while_another_thread_writes(tmp_path, data, monkeypatch):
    refused, real = threading.Event(), os.pwrite

    def pwrite(fd, piece, offset):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if threading.current_thread() is not threading.main_thread():
            refused.wait()
        return real(fd, piece, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    memory = page_aligned(SIZE)
    memory[:] = data
    half = SIZE // 2
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        file = PreallocatedFile(tmp_path / "file", SIZE, stack)
        # It has begun with its part of a page when the other half's direct write is refused.
        other = pool.submit(file.write, memory[half + 1 :], half + 1)
        file.write(memory[: half + 1], 0)
        refused.set()
        other.result()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "file", np.uint8), data)


def test_other_errors_are_not_taken_for_a_refusal(tmp_path, data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_in_runs(tmp_path / "file", data)


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        pwrite_all(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"
