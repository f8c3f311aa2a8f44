"""`lsg bench engine`, its result kept as benchmarks/results/engine-*.json and its plot as roofline-*.png.

A lower level's (`--isa`) has its name in the file's and no plot. Every argument goes to the command as it
stands.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import machine


def main(arguments: list[str]) -> None:
    """Run the command of this Python's environment and keep what it found."""
    machine.RESULTS.mkdir(exist_ok=True)
    plot = machine.RESULTS / f"roofline-{machine.name()}.png"
    with tempfile.NamedTemporaryFile(suffix=".json") as saved:
        # As a module: this Python may have lsg without its scripts.
        command = [sys.executable, "-m", "lsg.cli", "bench", "engine", *arguments, "--save", saved.name]
        if find_spec("matplotlib"):
            command += [] if "--isa" in arguments else ["--plot", str(plot)]
        else:
            print(f"no matplotlib, so {plot.name} stays as it is", file=sys.stderr)
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            raise SystemExit(status)
        if not (text := Path(saved.name).read_text()):
            return  # --help
    found = json.loads(text)
    facts = machine.describe(found.pop("machine")["threads"])
    if found["isa"] != "highest":
        facts |= {"name": f"{facts['name']}-{found['isa']}", "isa": found["isa"]}
    print(machine.save("engine", facts, **found).relative_to(machine.ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
