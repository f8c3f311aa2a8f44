"""kt-kernel's converter on the same checkpoint: it too makes int4 of BF16 experts, for its own engine.

The checkout and the installed package are the user's own; only the script's command line is known here. It
needs a processor with AVX-512, for which alone its quantisers are built.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path("kt-kernel") / "scripts" / "convert_cpu_weights.py"


def start(python: Path, checkout: Path) -> float:
    """Seconds until it can do something. Raises RuntimeError with its last words."""
    return _run([python, checkout / SCRIPT, "--help"])[0]


def convert(
    python: Path, checkout: Path, checkpoint: Path, out: Path, threads: int
) -> tuple[float, int, int]:
    """Run it once: seconds, peak RSS, bytes written. Raises RuntimeError with its last words."""
    shutil.rmtree(out, ignore_errors=True)
    command: list[str | Path] = [
        python,
        checkout / SCRIPT,
        "--input-path",
        checkpoint,
        "--input-type",
        "bf16",
    ]
    command += ["--output", out, "--quant-method", "int4"]
    command += ["--cpuinfer-threads", str(threads), "--threadpool-count", "1"]
    try:
        seconds, peak = _run(command)
        nbytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return seconds, peak, nbytes


def _run(command: Sequence[str | Path]) -> tuple[float, int]:
    """Seconds and peak RSS of a run of the script."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        words = " ".join(output.decode(errors="replace")[-300:].split())
        msg = f"{SCRIPT.name}: exit code {process.returncode}: {words}"
        raise RuntimeError(msg)
    return seconds, usage.ru_maxrss * 1024
