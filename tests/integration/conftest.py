"""One small checkpoint and its two repacked directories for all end-to-end tests."""

import pytest
from checkpoints import make_checkpoint
from integration.repack import convert


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
