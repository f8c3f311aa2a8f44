import os
import subprocess
import sys

import pytest
import torch

from lsg.runtime.sglang.cpu_standins import DIRECTORY


def run(program, *path):
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (DIRECTORY, *path)))}
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def fake(tmp_path):
    """A function: install a package of this name and content where the real one would be."""

    def install(name, content):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
        return tmp_path

    return install


def test_a_real_sgl_kernel_is_used(fake):
    finished = run("import sgl_kernel; print(sgl_kernel.REAL)", fake("sgl_kernel", "REAL = 'the real one'"))
    assert finished.stdout == "the real one\n", finished.stderr


def test_a_sgl_kernel_that_cannot_load_is_replaced(fake):
    broken = fake("sgl_kernel", "import sgl_kernel.missing")
    finished = run("import sgl_kernel; from sgl_kernel import silu_and_mul; silu_and_mul(1)", broken)
    assert "sgl_kernel.silu_and_mul: this is lsg's stand-in" in finished.stderr


def test_requests_get_their_cache_slots(sglang_import):
    stand_in = sglang_import("sgl_kernel")
    table = torch.zeros(4, 8, dtype=torch.int32)
    stand_in.assign_req_to_token_pool_cpu(
        torch.tensor([2, 0]), table, torch.tensor([1, 4]), torch.tensor([3, 5]), torch.tensor([11, 12, 13]), 8
    )
    expected = torch.zeros(4, 8, dtype=torch.int32)
    expected[2, 1:3] = torch.tensor([11, 12])
    expected[0, 4] = 13
    assert torch.equal(table, expected)


def test_torchvision_imports_and_is_the_real_one():
    finished = run("import torchvision; print(torchvision.__file__); torchvision.ops.nms")
    assert finished.returncode == 0, finished.stderr
    assert str(DIRECTORY) not in finished.stdout


WITHOUT_TORCHVISION = """
import torch
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name == "torchvision" and path else find(name, path, target)
PathFinder.find_spec = find_spec
import torchvision
"""


def test_a_torchvision_that_is_not_installed_is_not_found():
    finished = run(WITHOUT_TORCHVISION)
    assert "ModuleNotFoundError: No module named 'torchvision'" in finished.stderr
