"""`python tests/checkpoints OUT`: a random checkpoint; with --demo, one that can answer questions."""

import sys
from pathlib import Path

import click

# A directory run as a program is itself on the path; the package is one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--demo", is_flag=True, help="Train a model that knows the answers in facts.py.")
@click.option("--layers", type=int, help="Transformer layers.")
@click.option("--hidden", type=int, help="Hidden size.")
@click.option("--intermediate", type=int, help="Intermediate size of an expert.")
@click.option("--experts", type=int, help="Experts in a layer.")
@click.option("--top-k", type=int, help="Experts that compute a token.")
@click.option("--seed", type=int, help="Seed of all random numbers.")
@click.option("--shards", type=int, help="Number of safetensors files.")
def main(out: Path, demo: bool, **options: int | None) -> None:
    """Write a small Qwen3-MoE checkpoint into OUT."""
    given = {name: value for name, value in options.items() if value is not None}
    if demo:
        from checkpoints.demo import train_demo

        train_demo(out, report=click.echo, **given)
    else:
        from checkpoints.qwen3_moe import make_checkpoint

        make_checkpoint(out, **given)


if __name__ == "__main__":
    main()
