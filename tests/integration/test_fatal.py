"""What sglang would swallow must end the server: a non-zero exit code and one sentence on stderr."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from integration.server import QUICK_START, START_SECONDS

from lsg import manifest
from lsg.runtime.sglang.cpu_standins import DIRECTORY

pytestmark = pytest.mark.server


@pytest.fixture
def damaged(repacked, tmp_path):
    """A function: a copy of the int4 directory with its config or its manifest changed."""

    def make(path, **changes):
        copy = tmp_path / "damaged"
        shutil.copytree(repacked("int4"), copy)
        content = json.loads((copy / path).read_text())
        (copy / path).write_text(json.dumps(content | changes))
        return copy

    return make


def launch_sglang(directory):
    """Start sglang itself, as somebody does who has lsg installed and never heard of lsg-serve."""
    environ = os.environ | {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(DIRECTORY)}
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(directory)]
    command += ["--device", "cpu", "--attention-backend", "torch_native", "--host", "127.0.0.1", *QUICK_START]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )


def test_a_config_that_the_experts_do_not_fit(damaged):
    directory = damaged("config.json", num_experts_per_tok=3)
    finished = launch_sglang(directory)
    assert finished.returncode != 0
    expected = f"lsg: {directory}: layer 0: sglang builds it with top_k = 3, the manifest says 2; "
    assert expected in finished.stderr


def test_a_damaged_manifest(damaged):
    directory = damaged(f"{manifest.DIRECTORY}/{manifest.FILE_NAME}", surplus=1)
    finished = launch_sglang(directory)
    assert finished.returncode != 0
    assert re.search(f"lsg.*{directory}/experts/manifest.json: .*surplus.*damaged", finished.stderr)
    assert "fired up" not in finished.stderr
