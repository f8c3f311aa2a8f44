"""kt-kernel's converter on the same checkpoint: it too makes int4 of BF16 experts, for its own engine.

The checkout and the installed package are the user's own; only the script's command line is known here. It
needs a processor with AVX-512, for which alone its quantisers are built.
"""

from pathlib import Path

import process

SCRIPT = Path("kt-kernel") / "scripts" / "convert_cpu_weights.py"


def start(python: Path, checkout: Path) -> float:
    """Seconds until it can do something. Raises RuntimeError with its last words."""
    return process.run([python, checkout / SCRIPT, "--help"]).seconds


def convert(python: Path, checkout: Path, checkpoint: Path, out: Path, threads: int) -> process.Used:
    """Run it once. Raises RuntimeError with its last words."""
    options = ["--input-type", "bf16", "--quant-method", "int4", "--cpuinfer-threads", str(threads)]
    where = ["--input-path", checkpoint, "--output", out]
    return process.run([python, checkout / SCRIPT, *where, *options, "--threadpool-count", "1"])
