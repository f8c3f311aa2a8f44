"""Adds the commit to result files of programs that do not know it: `python benchmarks/stamp.py FILE...`."""

import json
from pathlib import Path

import click
import machine


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Write "commit" into each file that has none."""
    commit = machine.describe(1)["commit"]
    for file in files:
        result = json.loads(file.read_text())
        if "commit" not in result and "commit" not in result.get("machine", {}):
            file.write_text(json.dumps({"commit": commit} | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
