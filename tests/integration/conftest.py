"""One small checkpoint and its two repacked directories for all end-to-end tests."""

import pytest
import torch
from integration.repack import convert

from checkpoints import make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """The reference's tensors are tiny: more threads only wait for each other, and for the server's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", layers=2, experts=8, top_k=2)


@pytest.fixture(scope="session")
def repacked(checkpoint):
    """A function: the directory with experts of this kind, made by lsg-convert on first use."""

    def make(kind):
        out = checkpoint.parent / kind
        return out if out.exists() else convert(checkpoint, out, kind)

    return make
