"""One small checkpoint for all converter tests: odd sizes, so that every panel has padding."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from checkpoints import make_checkpoint
from lsg.convert.cli import main

HIDDEN, INTERMEDIATE, EXPERTS, LAYERS = 96, 80, 4, 2


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 checkpoint of three shards. Do not change it."""
    return make_checkpoint(
        tmp_path_factory.mktemp("pristine") / "tiny-moe",
        layers=LAYERS,
        hidden=HIDDEN,
        intermediate=INTERMEDIATE,
        experts=EXPERTS,
        shards=3,
    )


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny-moe"))


@pytest.fixture(scope="session")
def convert() -> Callable[..., Result]:
    """Runs lsg-convert in this process."""

    def run(source: Path, out: Path, *options: str) -> Result:
        return CliRunner().invoke(main, [str(source), str(out), *options])

    return run


@pytest.fixture(scope="session")
def tree_hash() -> Callable[[Path], dict[str, str]]:
    """Digest of every file of a directory, by relative name."""

    def digest(directory: Path) -> dict[str, str]:
        return {
            str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return digest
