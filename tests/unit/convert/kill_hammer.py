"""Kills conversions, fills disks, and compares what comes of it with an uninterrupted run.

    python tests/unit/convert/kill_hammer.py --runs 200

A run is one conversion, killed (SIGKILL) after random delays until it is through; every `--full-disk`-th one
works on a tmpfs that is too small (needs root) and then gets room. The seed makes the delays repeatable.
"""

import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

# Run as a program, the tests' packages are two levels up.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from checkpoints import make_checkpoint


@dataclass
class Tally:
    """What has happened so far."""

    runs: int = 0
    kills: int = 0
    kills_while_working: int = 0
    full_disks: int = 0


def make_source(path: Path) -> Path:
    """A checkpoint that takes some tenths of a second to convert."""
    return make_checkpoint(path, layers=4, hidden=256, intermediate=192, experts=24, shards=5)


def command(source: Path, out: Path) -> list[str]:
    """The real program."""
    program = [sys.executable, "-m", "lsg.convert.cli"]
    return [*program, str(source), str(out), "--experts", "int4", "--threads", "2"]


def finish(source: Path, out: Path) -> float:
    """Convert without interruption; the seconds it took. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run(command(source, out), check=True, capture_output=True)
    return time.monotonic() - began


def kill_until_done(
    source: Path, out: Path, longest: float, chance: random.Random, tally: Tally, kills: int = 6
) -> None:
    """Kill after random delays, at most `kills` times, then let it finish; OUT is complete on return."""
    partial = out.with_name(out.name + ".partial")
    for _ in range(kills):
        process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0, longest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            tally.kills += 1
            tally.kills_while_working += partial.exists()
        if out.exists():
            return
    finish(source, out)


def differences(expected: Path, found: Path) -> list[str]:
    """Files that one of the directories lacks, or that differ."""
    names = sorted(
        {
            str(path.relative_to(root))
            for root in (expected, found)
            for path in root.rglob("*")
            if path.is_file()
        }
    )
    _, unlike, missing = filecmp.cmpfiles(expected, found, names, shallow=False)
    return unlike + missing


def fill_disk(source: Path, room: Path, expected: Path, chance: random.Random) -> Path:
    """Convert on a tmpfs where a stranger's file takes the room, then without it; the finished directory."""
    size = sum(path.stat().st_size for path in expected.rglob("*") if path.is_file())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + (2 << 20)}", "tmpfs", str(room)], check=True)
    out = room / "out"
    process = subprocess.Popen(command(source, out), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (room / "out.partial").exists():
        time.sleep(0.001)
    with (room / "stranger").open("wb", buffering=0) as stranger:
        block = bytes(chance.randrange(1 << 16, 1 << 20))
        while process.poll() is None:
            try:
                stranger.write(block)
            except OSError:
                time.sleep(0.001)
    _, complaint = process.communicate()
    (room / "stranger").unlink()
    if process.returncode != 0:
        last = (complaint.splitlines() or [""])[-1]
        if process.returncode != 1 or "Traceback" in complaint or not last.startswith("lsg-convert: "):
            msg = f"a full disk ended in {process.returncode}: {complaint}"
            raise click.ClickException(msg)
        finish(source, out)
    return out


@click.command()
@click.option("--runs", default=200, show_default=True, help="Conversions to interrupt.")
@click.option("--full-disk", default=10, show_default=True, help="Every so many runs, a full disk; 0: never.")
@click.option("--seed", default=0, show_default=True, help="Of the random delays.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Where to work; by default a temporary place."
)
def main(runs: int, full_disk: int, seed: int, scratch: Path | None) -> None:
    """Interrupt conversions at random and say whether the results are the same."""
    chance, tally = random.Random(seed), Tally()
    if os.geteuid() != 0:
        full_disk = 0
    with tempfile.TemporaryDirectory(dir=scratch, prefix="kill-hammer-") as root_name:
        root = Path(root_name)
        source, expected = make_source(root / "source"), root / "expected"
        longest = finish(source, expected)
        while tally.runs < runs:
            tally.runs += 1
            room = root / "room"
            room.mkdir()
            mounted = full_disk > 0 and tally.runs % full_disk == 0
            try:
                if mounted:
                    out = fill_disk(source, room, expected, chance)
                    tally.full_disks += 1
                else:
                    out = room / "out"
                    kill_until_done(source, out, longest, chance, tally)
                unlike = differences(expected, out)
            finally:
                if mounted:
                    subprocess.run(["umount", str(room)], check=True)
            if unlike:
                msg = f"run {tally.runs}, seed {seed}: differs in {', '.join(unlike)}"
                raise click.ClickException(msg)
            shutil.rmtree(room)
    click.echo(
        f"{tally.runs} conversions, {tally.kills} kills ({tally.kills_while_working} with work begun), "
        f"{tally.full_disks} full disks: every finished directory is byte-identical to an uninterrupted run's"
    )


if __name__ == "__main__":
    main()
