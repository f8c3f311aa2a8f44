"""Builds of lsg in turns: which is faster, on a machine that changes its speed from one second to the next.

Every build computes in a process of its own, on layers of its own; one measures while the others are stopped.
A build is a directory that holds the package `lsg`: an unpacked wheel, say.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from side import Side, UnableError


@click.command()
@click.argument(
    "builds", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--shape", default="A", show_default=True)
@click.option("--format", "format_", default="int4", show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 16), show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--isa", default="", help="As LSG_ISA.")
@click.option("--working-set", default=1.0, show_default=True, help="GB of layers of each build.")
@click.option("--seconds", default=0.06, show_default=True, help="Length of a turn.")
@click.option("--turns", default=16, show_default=True)
def main(builds: tuple[Path, ...], batches: tuple[int, ...], turns: int, **options: Any) -> None:
    """Print every build's median, and the median of its turns' ratios to the first build's."""
    children = [Side([sys.executable, __file__, "--child", build, json.dumps(options)]) for build in builds]
    try:
        _print_turns(builds, children, batches, turns)
    except UnableError as error:
        raise click.ClickException(str(error)) from None
    finally:
        for child in children:
            child.close()


def _print_turns(
    builds: tuple[Path, ...], children: list[Side], batches: tuple[int, ...], turns: int
) -> None:
    for child in children:
        child.measure(batches[0])
    for batch in batches:
        times: list[list[float]] = [[] for _ in builds]
        for turn in range(turns):
            order = range(len(builds)) if turn % 2 == 0 else reversed(range(len(builds)))
            for i in order:
                times[i].append(children[i].measure(batch)["seconds"])
        for build, own in zip(builds, times, strict=True):
            ratio = statistics.median(first / second for first, second in zip(times[0], own, strict=True))
            milliseconds = 1e3 * statistics.median(own)
            click.echo(f"{batch:5} tokens  {milliseconds:9.3f} ms  {ratio:6.3f} times as fast  {build}")


def serve(build: str, options: dict[str, Any]) -> None:
    """Answer each batch on the standard input as side.py wants it: with the median seconds of a call."""
    # The editable installation would come first.
    sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, build)
    from lsg._core import Engine
    from lsg.runtime import host, placement
    from lsg.runtime.bench.layers import Layers
    from lsg.runtime.bench.shapes import SHAPES, layer_spec

    placed = placement.plan(host.observe(), threads=options["threads"])
    shape = SHAPES[options["shape"]]
    # A build may be from before layers.SPIN_US.
    engine = Engine(nodes=placed.workers, isa=options["isa"], spin_us=1000)
    with tempfile.TemporaryDirectory() as scratch:
        spec = layer_spec(shape, options["format_"])
        layers = Layers(
            engine, placed, spec, shape.top_k, options["working_set"] * 1e9, Path(scratch), "huge"
        )
    for line in sys.stdin:
        calls = layers.measure(int(line), options["seconds"])
        seconds = statistics.median(call.seconds for call in calls)
        print(json.dumps({"batch": int(line), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
