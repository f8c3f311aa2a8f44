"""Whatever stops a conversion, the next run finishes it, and the result is the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lsg.convert import job
from lsg.convert.journal import Identity
from lsg.convert.workdir import open_work, partial_of

DRIVER = Path(__file__).with_name("crash_driver.py")
POINTS = 10


def drive(source, out, how, number):
    command = [sys.executable, str(DRIVER), str(source), str(out), "int4", how, str(number)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def expected(convert, pristine, tmp_path_factory, tree_hash):
    """Digests of the directory that an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert convert(pristine, out, "--experts", "int4").exit_code == 0
    return tree_hash(out)


@pytest.fixture(scope="module")
def calls(pristine, tmp_path_factory):
    """How many points there are to stop at, by the way of stopping."""

    def count(how):
        finished = drive(pristine, tmp_path_factory.mktemp(how) / "out", how, 0)
        assert finished.returncode == 0, finished.stderr
        return int(finished.stdout.split()[-1])

    return {how: count(how) for how in ("kill", "power", "interrupt")}


@pytest.fixture
def no_reread(monkeypatch):
    """What the journal says must be true by itself; comparing checksums is for disks that lie."""
    monkeypatch.setattr(job, "_REREAD_BYTES", 0)


@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.usefixtures("no_reread")
def test_killed_anywhere_it_is_continued(convert, pristine, tmp_path, tree_hash, expected, calls, point):
    out = tmp_path / "out"
    number = 1 + point * (calls["kill"] - 1) // (POINTS - 1)
    assert drive(pristine, out, "kill", number).returncode == -signal.SIGKILL
    if not out.exists():
        assert convert(pristine, out, "--experts", "int4").exit_code == 0
    assert tree_hash(out) == expected


@pytest.mark.usefixtures("no_reread")
def test_a_power_cut_before_any_sync_loses_nothing_that_was_journaled(
    convert, pristine, tmp_path, tree_hash, expected, calls
):
    for number in range(1, calls["power"] + 1):
        out = tmp_path / str(number)
        assert drive(pristine, out, "power", number).returncode == -signal.SIGKILL
        if not out.exists():
            assert convert(pristine, out, "--experts", "int4").exit_code == 0
        assert tree_hash(out) == expected, f"power cut before sync {number}"


def test_a_chain_of_power_cuts_gets_there(pristine, tmp_path, tree_hash, expected, calls):
    out = tmp_path / "out"
    # Half of the syncs are enough for the last steps, which are begun anew.
    runs = 1
    while drive(pristine, out, "power", calls["power"] // 2).returncode != 0 and not out.exists():
        runs += 1
        assert runs < 10
    assert runs > 1
    assert tree_hash(out) == expected


def test_finished_slabs_are_kept(convert, pristine, tmp_path, calls):
    out = tmp_path / "out"
    assert drive(pristine, out, "power", calls["power"] * 3 // 4).returncode == -signal.SIGKILL
    result = convert(pristine, out, "--experts", "int4", "--json")
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["slabs_kept"] == summary["slabs"] == 8
    assert summary["converted_bytes"] < json.loads(result.stdout.splitlines()[0])["total_bytes"]


def test_ctrl_c_keeps_what_is_finished(convert, pristine, tmp_path, tree_hash, expected, calls):
    out = tmp_path / "out"
    stopped = drive(pristine, out, "interrupt", calls["interrupt"] // 3)
    assert stopped.returncode == 130
    failure = stopped.stderr.splitlines()[-1]
    assert failure == (
        f"lsg-convert: interrupted; run the same command again to continue from {partial_of(out)}"
    )
    assert "Traceback" not in stopped.stderr
    result = convert(pristine, out, "--experts", "int4", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["slabs_kept"] > 0
    assert tree_hash(out) == expected


def test_other_options_do_not_continue_it(convert, pristine, tmp_path, tree_hash, expected, calls):
    out = tmp_path / "out"
    drive(pristine, out, "kill", calls["kill"] // 2)
    refused = convert(pristine, out, "--experts", "bf16")
    assert refused.exit_code == 1
    assert "an unfinished conversion with options experts=int4 search=True" in refused.stderr
    assert "--restart" in refused.stderr
    assert convert(pristine, out, "--experts", "int4", "--restart").exit_code == 0
    assert tree_hash(out) == expected


def test_another_source_does_not_continue_it(convert, source, tmp_path, calls):
    out = tmp_path / "out"
    drive(source, out, "kill", calls["kill"] // 2)
    shard = source / "model-00002-of-00003.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(shard).items()}, shard, {"format": "other"})
    refused = convert(source, out, "--experts", "int4")
    assert refused.exit_code == 1
    assert "another version of model-00002-of-00003.safetensors" in refused.stderr


def test_a_second_run_is_refused_while_the_first_works(convert, pristine, tmp_path):
    with open_work(tmp_path / "out", Identity("", {}, "", None, None, 0, []), restart=False):
        for options in ([], ["--restart"]):
            second = convert(pristine, tmp_path / "out", "--experts", "int4", *options)
            assert second.exit_code == 1
            assert "another lsg-convert is working here" in second.stderr
    assert not (tmp_path / "out").exists()
