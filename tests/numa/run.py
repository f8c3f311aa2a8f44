"""Proves NUMA placement without NUMA hardware: boots the wheel in emulated machines, judges what they saw.

Invariant: nothing is installed, and every machine gets the same disk. Exit code 1 when anything was wrong.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")

from numa import batches  # noqa: E402
from numa.boot import Boot, Limits, boot  # noqa: E402
from numa.image import build  # noqa: E402
from numa.machines import MACHINES, Machine, command  # noqa: E402
from numa.report import Row, judge  # noqa: E402
from numa.rounding import expected  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "numa.json"
# Programs and the Debian packages that have them.
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "ldd": "libc-bin"}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
# 22 units, which 4 and 8 nodes cannot share evenly; 117 MB in int4: a page is less than 0.1 % of a share. Few
# experts a token, because an emulated machine does a hundred million products a second.
SHAPE = {"layers": 4, "hidden": 1024, "intermediate": 704, "experts": 24, "top-k": 3}
# For everything, which takes about half of it on two cores.
TOTAL_S = 19.5 * 60


@click.command()
@click.option(
    "--wheel",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT / "dist",
    show_default="dist",
    help="The directory with the wheel; the newest counts.",
)
@click.option(
    "--kernel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default=f"the newest of {KERNEL_PACKAGE} in /boot",
    help="A Linux image with ext4 and NVMe built in.",
)
@click.option("--only", "names", multiple=True, help="This machine; may be repeated. Nothing is saved then.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "build" / "numa",
    show_default="build/numa",
    help="Where the disk, the reports and the consoles go.",
)
def main(wheel: Path, kernel: Path | None, names: tuple[str, ...], scratch: Path) -> None:
    """Boot every machine; about ten minutes on two cores, never more than twenty."""
    deadline = time.monotonic() + TOTAL_S
    kernel = _checked(kernel or _newest(Path("/boot"), "vmlinuz-*-cloud-amd64"))
    archive = _newest(wheel, "lsg-*.whl")
    if archive is None:
        msg = f"{wheel}: no wheel of lsg; run make wheel"
        raise click.ClickException(msg)
    scratch.mkdir(parents=True, exist_ok=True)
    image = scratch / "disk.img"
    model = _make_model(scratch)
    build(image, archive, model)
    prompt = expected(model, *batches.PROMPT)
    rows: list[Row] = []
    reference: list[str] = []
    hiccups = 0
    for machine in MACHINES:
        # The first is what the others are compared with.
        if names and machine.name not in (*names, MACHINES[0].name):
            continue
        booted = _boot(machine, kernel, image, scratch, deadline)
        hiccups += booted.hiccups
        digests = (report["digests"] for report in booted.reports if "digests" in report)
        reference = reference or next(digests, [])
        rows += judge(machine, booted.reports, reference, prompt, booted.ended)
        _show(rows[-len(machine.scenarios) :])
    if not names:
        model_bytes = sum(file.stat().st_size for file in model.glob("experts/*.lsgb"))
        facts = {
            "qemu": _version("qemu-system-x86_64"),
            "kernel": kernel.name.removeprefix("vmlinuz-"),
            "commit": _commit(),
            "model": f"{model_bytes / 1e6:.0f} MB of int4 experts in layers of 22 units",
            "hiccups": hiccups,
        }
        RESULT.write_text(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    faults = sum(bool(row.faults) for row in rows)
    click.echo(f"{len(rows)} scenarios, {faults} of them wrong")
    sys.exit(faults > 0)


def _checked(kernel: Path | None) -> Path:
    """The kernel, when every program is there too."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if kernel is None:
        missing.append(KERNEL_PACKAGE)
    if missing or kernel is None:
        msg = (
            f"needs the Debian packages {', '.join(missing)}: apt-get install --no-install-recommends "
            f"{' '.join(missing)} (a kernel that is elsewhere: --kernel FILE)"
        )
        raise click.ClickException(msg)
    return kernel


def _make_model(scratch: Path) -> Path:
    """A repacked model directory, by the converter that belongs to the wheel."""
    checkpoint, model = scratch / "checkpoint", scratch / "model"
    shutil.rmtree(model, ignore_errors=True)
    options = [f"--{name}={value}" for name, value in SHAPE.items()]
    subprocess.run([sys.executable, ROOT / "tests" / "checkpoints", checkpoint, *options], check=True)
    convert = [sys.executable, "-c", "from lsg.convert.cli import main; main()"]
    subprocess.run([*convert, checkpoint, model, "--experts", "int4"], check=True)
    shutil.rmtree(checkpoint)
    return model


def _boot(machine: Machine, kernel: Path, image: Path, scratch: Path, deadline: float) -> Boot:
    """What the machine's scenarios reported. Its console is kept beside the image."""
    stem = machine.name.replace(" ", "-")
    console, report = scratch / f"{stem}.log", scratch / f"{stem}.jsonl"
    start = command(machine, kernel, image, report)
    booted = boot(start, console, report, len(machine.scenarios), Limits(), deadline)
    if booted.hiccups:
        click.echo(
            f"{machine.name}: stood still before its first process in {booted.hiccups} of 2 starts", err=True
        )
    if booted.ended:
        click.echo(f"{machine.name}: {booted.ended}; see {console}", err=True)
    return booted


def _show(rows: list[Row]) -> None:
    for row in rows:
        pages = f"{row.pages_right}/{row.pages_total} pages" if row.pages_total else ""
        threads = f"{row.threads_right}/{row.threads_total} threads" if row.threads_total else ""
        same = "same bits" if row.result_equal else ""
        prompt = "" if row.prompt_error is None else f"{100 * row.prompt_error:.1f} % of rounding"
        verdict = "WRONG" if row.faults else "right"
        click.echo(
            f"{row.machine:22} {row.scenario:17} {verdict} {pages:>19} {threads:>13} {same:9} "
            f"{prompt:16} {row.seconds:4.0f} s"
        )
        for line in [*row.faults, *filter(None, [row.note])]:
            click.echo(f"    {line}")


def _newest(directory: Path, pattern: str) -> Path | None:
    return max(directory.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split()[:4]).replace("emulator version ", "")


def _commit() -> str:
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
