"""Converts every model family in every published format, checks each weight, and lets the engine compute it.

No measurement but a proof, on tiny checkpoints with the real names and encodings, from tests/checkpoints.
Each is converted with `--experts keep`, `bf16` and `int4`, compared weight by weight with what its generator
drew, and computed by the engine. That is a fact about the commit: the result's file names no machine.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import machine
from click.testing import CliRunner

sys.path[:0] = [str(machine.ROOT / "tests"), str(machine.ROOT / "tests" / "kernels")]

from checkpoints import families  # noqa: E402
from checkpoints.families import verify  # noqa: E402
from lsg.convert.cli import main as lsg_convert  # noqa: E402

# 4-bit floats are never made 4-bit integers.
NO_INT4 = ("mxfp4", "nvfp4")


@click.command()
@click.option(
    "--model", "models", multiple=True, type=click.Choice(list(families.MODELS)), help="Only these."
)
@click.option("--save/--no-save", default=True, show_default=True, help="Write benchmarks/results.")
def main(models: tuple[str, ...], save: bool) -> None:
    """Convert and check the whole matrix; exit with 1 if a cell fails."""
    cases = []
    for model, form in families.CASES:
        if models and model not in models:
            continue
        case = _case(model, form)
        cases.append(case)
        click.echo(f"{model:32} {form:24} {case['failure'] or 'ok'}")
    if save:
        result = {"commit": machine.describe(1)["commit"], "cases": cases}
        machine.RESULTS.mkdir(exist_ok=True)
        (machine.RESULTS / "families.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(case["failure"] for case in cases))


def _case(model: str, form: str) -> dict[str, Any]:
    """One cell: how far it got, and the first sentence of what stopped it."""
    case: dict[str, Any] = {
        "model": model,
        "format": form,
        "encoding": families.FORMATS[form].experts.decoder,
        "converted": False,
        "verified": False,
        "computed": False,
        "failure": "",
    }
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        expected = families.make(source, model, form)
        run = CliRunner().invoke(lsg_convert, [str(source), str(out), "--experts", "keep"])
        if run.exit_code:
            case["failure"] = _last_line(run.output) or repr(run.exception)
            return case
        case["converted"] = True
        case["verified"] = _holds(case, lambda: _verify(source, out, expected, case["encoding"]))
        case["computed"] = _holds(case, lambda: verify.check_engine(out, expected))
    return case


def _verify(source: Path, out: Path, expected: families.Expected, encoding: str) -> None:
    verify.check_manifest(out, expected)
    verify.check_experts(out, expected)
    verify.check_resident(source, out, expected)
    for target in ("bf16",) if encoding in NO_INT4 else ("bf16", "int4"):
        other = out.with_name(target)
        run = CliRunner().invoke(lsg_convert, [str(source), str(other), "--experts", target])
        if run.exit_code:
            msg = f"--experts {target}: {_last_line(run.output)}"
            raise verify.Mismatch(msg)
        verify.check_experts(other, expected, target)


def _holds(case: dict[str, Any], check: Callable[[], None]) -> bool:
    try:
        check()
    except verify.Mismatch as mismatch:
        case["failure"] = case["failure"] or str(mismatch)
        return False
    return True


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1] if output.strip() else ""


if __name__ == "__main__":
    main()
