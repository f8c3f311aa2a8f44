"""Kills conversions, fills disks, damages shards, and compares what comes of it with an uninterrupted run.

    python tests/unit/convert/kill_hammer.py --runs 200

A run is one conversion, killed (SIGKILL) after random delays until it is through. Every `--full-disk`-th one
works on a tmpfs that is too small (needs root) and then gets room; every `--bad-shard`-th one downloads from
a stand-in for the Hub that sends one shard with a flipped bit, twice, and then as it is. The seed makes the
delays repeatable.
"""

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import click

# Run as a program, the tests' packages are two levels up.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from unit.convert.hub.server import HubServer, Repository

from checkpoints import make_checkpoint

HUB_ID = "tiny/moe"


@dataclass
class Tally:
    """What has happened so far."""

    runs: int = 0
    kills: int = 0
    kills_while_working: int = 0
    full_disks: int = 0
    bad_shards: int = 0
    identical: int = 0


def make_source(path: Path) -> Path:
    """A checkpoint of some tenths of a second's work; its matrices are so large that the core reads them."""
    return make_checkpoint(path, layers=4, hidden=512, intermediate=320, experts=12, shards=5)


def command(source: Path | str, out: Path) -> list[str]:
    """The real program."""
    program = [sys.executable, "-m", "lsg.convert.cli"]
    return [*program, str(source), str(out), "--experts", "int4", "--threads", "2"]


def finish(source: Path | str, out: Path, environ: dict[str, str] | None = None) -> float:
    """Convert without interruption; the seconds it took. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run(command(source, out), check=True, capture_output=True, env=environ)
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
        check_complaint("a full disk", process.returncode, complaint)
        finish(source, out)
    return out


def damage_shard(server: HubServer, source: Path, room: Path, chance: random.Random) -> Path:
    """Convert from a Hub that damages a shard twice, then from a sound one; the finished directory."""
    out = room / "out"
    shard = chance.choice(sorted(source.glob("*.safetensors")))
    server.faults[shard.name] = [("corrupt", chance.randrange(shard.stat().st_size))] * 2
    environ = hub_environment(server, room / "hf")
    run = subprocess.run(command(HUB_ID, out), capture_output=True, text=True, env=environ, check=False)
    if run.returncode == 0:
        msg = f"{shard.name} was damaged, but the conversion went through"
        raise click.ClickException(msg)
    check_complaint("a damaged shard", run.returncode, run.stderr)
    finish(HUB_ID, out, environ)
    return out


def hub_environment(server: HubServer, home: Path) -> dict[str, str]:
    """For a process that knows no Hub but the stand-in, with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def check_complaint(what: str, status: int, complaint: str) -> None:
    """Raise ClickException unless it was one sentence and exit code 1."""
    last = (complaint.splitlines() or [""])[-1]
    if status != 1 or "Traceback" in complaint or not last.startswith("lsg-convert: "):
        msg = f"{what} ended in {status}: {complaint}"
        raise click.ClickException(msg)


@click.command()
@click.option("--runs", default=200, show_default=True, help="Conversions to interrupt.")
@click.option("--full-disk", default=10, show_default=True, help="Every so many runs, a full disk; 0: never.")
@click.option(
    "--bad-shard", default=10, show_default=True, help="Every so many runs, a damaged shard; 0: never."
)
@click.option("--seed", default=0, show_default=True, help="Of the random delays.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Where to work; by default a temporary place."
)
@click.option(
    "--save",
    "saved",
    type=click.Path(path_type=Path),
    help="Also write the tally as JSON, added to one there.",
)
def main(
    runs: int, full_disk: int, bad_shard: int, seed: int, scratch: Path | None, saved: Path | None
) -> None:
    """Interrupt conversions at random and say whether the results are the same."""
    chance, tally = random.Random(seed), Tally()
    if os.geteuid() != 0:
        full_disk = 0
    with tempfile.TemporaryDirectory(dir=scratch, prefix="kill-hammer-") as root_name, HubServer() as server:
        root = Path(root_name)
        source = make_source(root / "source")
        server.repositories[HUB_ID] = Repository({"1" * 40: source}, {"main": "1" * 40})
        local, downloaded = root / "expected", root / "expected-hub"
        longest = finish(source, local)
        finish(HUB_ID, downloaded, hub_environment(server, root / "hf"))
        while tally.runs < runs:
            tally.runs += 1
            room = root / "room"
            room.mkdir()
            expected = local
            mounted = full_disk > 0 and tally.runs % full_disk == 0
            try:
                if mounted:
                    out = fill_disk(source, room, expected, chance)
                    tally.full_disks += 1
                elif bad_shard > 0 and tally.runs % bad_shard == bad_shard // 2:
                    out, expected = damage_shard(server, source, room, chance), downloaded
                    tally.bad_shards += 1
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
            tally.identical += 1
            shutil.rmtree(room)
        server.shutdown()
    if saved is not None:
        add(tally, saved)
    click.echo(
        f"{tally.runs} conversions, {tally.kills} kills ({tally.kills_while_working} with work begun), "
        f"{tally.full_disks} full disks, {tally.bad_shards} damaged shards: every finished directory is "
        "byte-identical to an uninterrupted run's"
    )


def add(tally: Tally, saved: Path) -> None:
    """Write the tally, or its sum with what is in the file."""
    before = json.loads(saved.read_text()) if saved.exists() else {}
    sums = {field.name: getattr(tally, field.name) + before.get(field.name, 0) for field in fields(tally)}
    saved.write_text(json.dumps(sums, indent=1) + "\n")


if __name__ == "__main__":
    main()
