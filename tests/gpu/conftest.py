"""The stand-in for CUDA's driver: compiled, loaded, and wrapped."""

import ctypes
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
# Far longer than anything here takes, and then the test fails instead of hanging.
WAIT_MS = 20_000


class Stream:
    """A stream of the stand-in."""

    def __init__(self, driver):
        self.driver = driver
        self.address = driver.FakeStream()

    def wait(self, milliseconds=WAIT_MS):
        return bool(self.driver.FakeWait(self.address, milliseconds))

    def capture(self, submit):
        self.driver.FakeBeginCapture(self.address)
        submit(self)
        return self.driver.FakeEndCapture(self.address)

    def replay(self, graph):
        self.driver.FakeReplay(graph, self.address)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("fake") / "libcuda.so.1"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["c++", *flags, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture(scope="session")
def driver(library):
    driver = ctypes.CDLL(str(library))
    for name in ("FakeStream", "FakeEndCapture"):
        getattr(driver, name).restype = ctypes.c_void_p
    for name in ("FakeWait", "FakeStreamEnd", "FakeBeginCapture", "FakeEndCapture", "FakeDrop"):
        getattr(driver, name).argtypes = [ctypes.c_void_p]
    driver.FakeWait.argtypes = [ctypes.c_void_p, ctypes.c_int]
    driver.FakeReplay.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    driver.FakeGraphSize.argtypes = [ctypes.c_void_p]
    return driver


@pytest.fixture
def streams(driver):
    """A function: a new stream."""
    made = []

    def make():
        made.append(Stream(driver))
        return made[-1]

    yield make
    for stream in made:
        assert stream.wait(), "a stream never came to an end"
        driver.FakeStreamEnd(stream.address)
