"""kt-kernel's converter on the same checkpoint: it too makes int4 of BF16 experts, for its own engine.

The checkout and the installed package are the user's own; only the script's command line is known here. It
needs a processor with AVX-512, for which alone its quantisers are built.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

SCRIPT = Path("kt-kernel") / "scripts" / "convert_cpu_weights.py"


def convert(
    python: Path, checkout: Path, checkpoint: Path, out: Path, threads: int
) -> tuple[float, int, int]:
    """Run it once: seconds, peak RSS, bytes written. Raises RuntimeError with its last words."""
    shutil.rmtree(out, ignore_errors=True)
    command = [python, checkout / SCRIPT, "--input-path", checkpoint, "--input-type", "bf16"]
    command += ["--output", out, "--quant-method", "int4"]
    command += ["--cpuinfer-threads", str(threads), "--threadpool-count", "1"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        words = " ".join(output.decode(errors="replace")[-300:].split())
        shutil.rmtree(out, ignore_errors=True)
        msg = f"{SCRIPT.name}: exit code {process.returncode}: {words}"
        raise RuntimeError(msg)
    nbytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return seconds, usage.ru_maxrss * 1024, nbytes
