"""Puts tests/ on the path, so that every test can import `checkpoints`, and makes sglang importable."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def sglang_import():
    """A function: import a module that imports sglang, as lsg-serve makes it importable without a GPU."""
    from lsg.runtime.sglang.cpu_standins import DIRECTORY

    def quietly(name):
        # What sglang warns about is not ours.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DIRECTORY)
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        yield quietly
