"""One small checkpoint and its two repacked directories for all end-to-end tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", layers=2, experts=8, top_k=2)


@pytest.fixture(scope="session")
def repacked(checkpoint):
    """A function: the directory with experts of this kind, made by lsg-convert on first use."""

    def make(kind):
        out = checkpoint.parent / kind
        if not out.exists():
            convert = Path(sys.executable).parent / "lsg-convert"
            subprocess.run([convert, checkpoint, out, "--experts", kind], check=True, capture_output=True)
        return out

    return make
