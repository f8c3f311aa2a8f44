"""A small repacked directory for every test that wants one, and a copy for those that spoil it."""

import shutil

import pytest
from integration.repack import convert

from checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("runtime") / "tiny", layers=2, experts=4, top_k=2)


@pytest.fixture(scope="session")
def repacked(checkpoint):
    return convert(checkpoint, checkpoint.parent / "int4", "int4")


@pytest.fixture
def spoilt(repacked, tmp_path):
    return shutil.copytree(repacked, tmp_path / "spoilt")
