"""A stand-in for the Hub with one model, and the real lsg-convert against it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.convert.hub.server import HubServer, Repository

MODEL = "tiny/moe"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def server(pristine: Path) -> Iterator[HubServer]:
    """Serves the pristine checkpoint as tiny/moe."""
    with HubServer() as server:
        server.repositories[MODEL] = Repository({FIRST: pristine}, {"main": FIRST})
        yield server
        server.shutdown()


@pytest.fixture
def environment(server: HubServer, tmp_path: Path) -> dict[str, str]:
    """For a process that knows no Hub but the stand-in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        # Any other address is a dead end.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs lsg-convert; keyword arguments are further variables of its environment."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lsg.convert.cli", *map(str, arguments)],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run
