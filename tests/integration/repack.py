"""lsg-convert, as tests of the runtime use it: the blob is the only thing they need of it."""

import subprocess
import sys
from pathlib import Path


def convert(checkpoint: Path, out: Path, kind: str) -> Path:
    """Repack the checkpoint into `out` with experts of this kind, and return it."""
    program = "from lsg.convert.cli import main; main()"
    command = [sys.executable, "-c", program, str(checkpoint), str(out), "--experts", kind]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out
