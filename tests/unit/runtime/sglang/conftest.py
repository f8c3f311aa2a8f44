"""sglang importable on a machine without a GPU, as lsg-serve makes it."""

import importlib
import warnings

import pytest

from lsg.runtime.sglang.cpu_standins import DIRECTORY


@pytest.fixture(scope="session")
def sglang_import():
    """A function: import a module that imports sglang; what sglang warns about is not ours."""

    def quietly(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DIRECTORY)
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        yield quietly
