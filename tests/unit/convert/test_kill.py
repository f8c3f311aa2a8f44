"""The real process, killed at random moments; `kill_hammer.py` does the same for longer."""

import random
import resource
import subprocess

import pytest
from unit.convert import kill_hammer

from lsg.convert.workdir import partial_of

KILLS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return kill_hammer.make_source(tmp_path_factory.mktemp("hammer") / "source")


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The directory of an uninterrupted run, and how long it took."""
    out = tmp_path_factory.mktemp("expected") / "out"
    return out, kill_hammer.finish(source, out)


def test_killed_at_random_moments(source, expected, tmp_path):
    directory, seconds = expected
    chance, tally = random.Random(1), kill_hammer.Tally()
    number = 0
    while tally.kills < KILLS:
        number += 1
        out = tmp_path / str(number)
        kill_hammer.kill_until_done(source, out, seconds, chance, tally)
        assert kill_hammer.differences(directory, out) == []
        # Killed after the last rename, it leaves a work directory with nothing of the model in it.
        assert not (partial_of(out) / "model").exists()
    assert tally.kills_while_working > 0


def test_a_file_that_may_not_grow_any_more(source, expected, tmp_path):
    """A limit on file sizes is a full disk that needs no root: every write beyond it fails."""
    directory, _ = expected
    out = tmp_path / "out"
    largest = max(path.stat().st_size for path in directory.rglob("*.safetensors"))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    failed = subprocess.run(
        kill_hammer.command(source, out), preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("lsg-convert: ")
    assert not out.exists()
    kill_hammer.finish(source, out)
    assert kill_hammer.differences(directory, out) == []


def test_two_runs_into_one_directory(source, expected, tmp_path):
    directory, _ = expected
    out = tmp_path / "out"
    both = [
        subprocess.Popen(kill_hammer.command(source, out), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    complaints = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    loser = next(text for process, text in zip(both, complaints, strict=True) if process.returncode == 1)
    assert "another lsg-convert is working here" in loser or "already exists" in loser
    assert kill_hammer.differences(directory, out) == []
