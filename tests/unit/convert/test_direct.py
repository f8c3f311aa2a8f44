"""Direct writes beside cached ones: every byte arrives, whichever way its page goes."""

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from lsg._core import write_rows
from lsg.convert.direct import PAGE, PreallocatedFile, page_aligned, pwrite_all

SIZE = 12 * PAGE
# Neighbours whose borders are at the edges of pages and inside; one of them does not fill a page.
BORDERS = [0, 3 * PAGE, 5 * PAGE + 17, 5 * PAGE + 900, 9 * PAGE - 1, SIZE]
NONE = -1


def runs(data, misplaced=0):
    """The neighbours, last first, each in memory as in the file, and its offset."""
    for begin, end in list(itertools.pairwise(BORDERS))[::-1]:
        place = begin % PAGE + misplaced
        memory = page_aligned(SIZE + PAGE)[place : place + end - begin]
        memory[:] = data[begin:end]
        yield memory[None], begin


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(1, 256, SIZE, np.uint8)


@pytest.fixture
def open_file(tmp_path):
    """Opens a file of zeros by its name."""
    with ExitStack() as stack:

        def open_(name):
            (tmp_path / name).write_bytes(bytes(SIZE))
            fd = os.open(tmp_path / name, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd

        yield open_


@pytest.fixture
def refusing():
    """A descriptor that answers every write as file systems without direct ones do."""
    fd = os.open("/proc/self/coredump_filter", os.O_WRONLY)  # wants a number
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.pwrite(fd, b"?", PAGE)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("misplaced", [0, 64])
def test_whole_pages_go_directly_unless_they_lie_otherwise_in_memory(open_file, data, misplaced):
    cached, direct = open_file("cached"), open_file("direct")  # two files tell the ways apart
    for rows, offset in runs(data, misplaced):
        assert write_rows(cached, direct, rows, offset)
    found = np.frombuffer(os.pread(cached, SIZE, 0) + os.pread(direct, SIZE, 0), np.uint8).reshape(
        2, -1, PAGE
    )
    pages = data.reshape(-1, PAGE)
    for number, page in enumerate(pages):
        through_cache = misplaced or number in (5, 8)
        np.testing.assert_array_equal(found[0, number], page if through_cache else 0)
        np.testing.assert_array_equal(found[1, number], 0 if through_cache else page)


def test_rows_lie_apart_in_memory_and_in_the_file(open_file, data):
    file = open_file("file")
    rows = data.reshape(4, -1)[:, 100:5000]
    assert write_rows(file, NONE, rows, 300, 7000)
    expected = np.zeros(SIZE, np.uint8)
    for number, row in enumerate(rows):
        expected[300 + 7000 * number :][: len(row)] = row
    np.testing.assert_array_equal(np.frombuffer(os.pread(file, SIZE, 0), np.uint8), expected)


@pytest.mark.parametrize("directly", [True, False])
def test_a_file_is_whole_whatever_its_file_system_can(tmp_path, data, monkeypatch, directly):
    if not directly:
        real = os.open

        def refuse(path, flags, *mode):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real(path, flags, *mode)

        monkeypatch.setattr(os, "open", refuse)
    with ExitStack() as stack:
        file = PreallocatedFile(tmp_path / "file", SIZE, stack)
        for rows, offset in runs(data):
            file.write(rows, offset)
        file.sync()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "file", np.uint8), data)


def test_a_file_system_may_refuse_direct_writes_late(open_file, data, refusing):
    file = open_file("file")
    # A row of part of a page knows of no refusal.
    answers = [write_rows(file, refusing, rows, offset) for rows, offset in runs(data)]
    assert answers == [False, False, True, False, False]
    np.testing.assert_array_equal(np.frombuffer(os.pread(file, SIZE, 0), np.uint8), data)


def test_after_a_refusal_a_file_is_written_through_the_cache(tmp_path, data, monkeypatch, refusing):
    real, tried = os.open, []

    def open_(path, flags, *mode):
        if not flags & os.O_DIRECT:
            return real(path, flags, *mode)
        tried.append(path)
        return os.dup(refusing)

    monkeypatch.setattr(os, "open", open_)
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        file = PreallocatedFile(tmp_path / "file", SIZE, stack)
        list(pool.map(lambda run: file.write(*run), list(runs(data))))
    assert tried
    np.testing.assert_array_equal(np.fromfile(tmp_path / "file", np.uint8), data)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("way", ["cached", "direct"])
def test_other_errors_are_not_taken_for_a_refusal(open_file, data, way):
    file, full = open_file("file"), os.open("/dev/full", os.O_WRONLY)
    cached, direct = (full, NONE) if way == "cached" else (file, full)
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            write_rows(cached, direct, next(iter(runs(data)))[0], 9 * PAGE - 1)
    finally:
        os.close(full)
    assert caught.value.errno == errno.ENOSPC


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        pwrite_all(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"
