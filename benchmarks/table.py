"""Renders the tables of README.md and benchmarks/README.md from benchmarks/results.

The text between two markers, `<!-- bench:NAME -->` and `<!-- /bench -->`, depends on the result
files alone, so `--check` can tell whether it is theirs.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import gpu_tables
import memory_tables
from markdown import percent, rate, section, table

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


@click.command()
@click.option(
    "--check", is_flag=True, help="Change nothing; exit with 1 if a table is not what the results give."
)
@click.option(
    "--readme",
    "readmes",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=(ROOT / "README.md", ROOT / "benchmarks" / "README.md"),
    show_default="README.md and benchmarks/README.md",
    help="A file with the markers.",
)
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT / "benchmarks" / "results",
    show_default="benchmarks/results",
    help="The directory with the results.",
)
def main(check: bool, readmes: tuple[Path, ...], results: Path) -> None:
    """Rewrite the tables of README.md and benchmarks/README.md."""
    differing = []
    for readme in readmes:
        old = readme.read_text()
        new, tables = BLOCK.subn(lambda block: _block(block, results), old)
        if not tables:
            msg = f"{readme}: no '<!-- bench:NAME -->' … '<!-- /bench -->' to fill in"
            raise click.ClickException(msg)
        if new == old:
            continue
        differing.append(readme)
        if not check:
            readme.write_text(new)
    if check and differing:
        for readme in differing:
            click.echo(f"{readme}: a table differs from {results}; run benchmarks/table.py", err=True)
        sys.exit(1)


def _block(block: re.Match[str], results: Path) -> str:
    name = block["name"]
    if name not in TABLES:
        msg = f"no table is called {name!r}; there are {', '.join(TABLES)}"
        raise click.ClickException(msg)
    # A result of one machine has its name; what holds on any machine has none.
    kind = "txt" if name == "doctor" else "json"
    source = SOURCES.get(name, name)
    files = sorted([*results.glob(f"{source}-*.{kind}"), *results.glob(f"{source}.{kind}")])
    if not files:
        msg = f"{results}: no {source}.{kind} or {source}-*.{kind}; run benchmarks/{source}.py first"
        raise click.ClickException(msg)
    texts = [file.read_text() for file in files]
    contents = texts if name == "doctor" else [json.loads(text) for text in texts]
    if name == "families":
        served = [json.loads(file.read_text()) for file in sorted(results.glob("served_*.json"))]
        contents = [content | {"served": served} for content in contents]
    return block[1] + "\n".join(TABLES[name](content) for content in contents) + block[3]


def _convert(result: dict[str, Any]) -> str:
    limits = result["limits_bytes_per_s"]
    rows = []
    for name, run in result["runs"].items():
        written = run["output_bytes"] / run["seconds"]["median"]
        start = run.get("start_seconds")
        rates = (run.get(f"{key}bytes_per_s") for key in ("one_thread_", "", "memory_one_thread_", "memory_"))
        rows.append(
            [
                name + (f" (start: {start['median']:.1f} s)" if start else ""),
                *(rate(found) if found else "" for found in rates),
                f"{run['cpu_seconds_per_gb']['median']:.2f}",
                f"{written / 1e9:.2f}",
                percent(written, limits["disk write"]["median"]),
                f"{run['peak_rss_bytes'] / 2**20:.0f}",
            ]
        )
    rows += [[f"limit: {name}", "", rate(found), *[""] * 6] for name, found in limits.items()]
    threads = result["machine"]["threads"]
    head = ["GB/s read", "1 thread", f"{threads} threads", "into memory, 1", f"into memory, {threads}"]
    head += ["CPU, s/GB", "GB/s written", "of disk", "peak RSS, MiB"]
    shape = result["shape"]
    what = (
        f"Checkpoint: {result['source_bytes'] / 1e9:.1f} GB in BF16, hidden size {shape['hidden']}, "
        f"intermediate size {shape['intermediate']}, {shape['experts']} experts a layer; in the page cache. "
        f"The whole command, {result['start_seconds']['median']:.2f} s of start included. In pure arithmetic "
        f"{threads} threads do {result['arithmetic_of_threads']['median']:.1f} times what one does."
    )
    return section(result["machine"], what, head, rows)


def _engine(result: dict[str, Any]) -> str:
    cells = result["cells"]
    batches = sorted({cell["batch"] for cell in cells})
    rows = []
    for (shape, model, dtype, experts), group in groupby(
        cells, key=lambda cell: (cell["shape"], cell["model"], cell["format"], cell["num_experts"])
    ):
        by_batch = {cell["batch"]: _engine_cell(cell) for cell in group}
        rows.append([f"{shape} ({model}, {experts} experts)", dtype, *(by_batch.get(b, "") for b in batches)])
    memory = _spread_of([group["bytes_per_s"] for group in result["limits"]])
    peaks = ", ".join(
        f"{name} {_spread_of([group['operations_per_s'][name] for group in result['limits']])}"
        for name in dict.fromkeys(cell["instruction"] for cell in cells)
    )
    what = (
        f"Weights cold, `--activations {result['activations']}`, `--load {result['load']}`. Limits: {memory} "
        f"GB/s read from memory; {peaks} GOP/s. In a cell: ms a layer; GB/s of the chosen experts or, where "
        "arithmetic binds, GOP/s; how much that is of the limit that binds."
    )
    head = ["shape", "format", *_tokens(batches)]
    return section(result["machine"], what, head, rows)


def _engine_summary(result: dict[str, Any]) -> str:
    cells = result["cells"]
    formats = list(dict.fromkeys(cell["format"] for cell in cells))
    batches = sorted({cell["batch"] for cell in cells})
    rows = []
    for batch, tokens in zip(batches, _tokens(batches), strict=True):
        row = [tokens]
        for dtype in formats:
            shares = [
                max(cell["percent_of_memory"], cell["percent_of_arithmetic"])
                for cell in cells
                if (cell["batch"], cell["format"]) == (batch, dtype)
            ]
            row.append(f"{statistics.median(shares):.0f} ({min(shares):.0f} … {max(shares):.0f})")
        rows.append(row)
    shapes = ", ".join(dict.fromkeys(cell["shape"] for cell in cells))
    what = (
        f"Percent of the limit that binds, memory's or the fastest instruction's; shapes {shapes}, "
        f"`--activations {result['activations']}`."
    )
    return section(result["machine"], what, ["", *formats], rows, "Median of the shapes (lowest … highest).")


def _engine_cell(cell: dict[str, Any]) -> str:
    ms = 1e3 * cell["seconds"]["median"]
    time = f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
    if cell["bound"] == "memory":
        rate, percent = f"{cell['bytes_per_s']['median'] / 1e9:.1f} GB/s", cell["percent_of_memory"]
    else:
        rate, percent = f"{cell['operations_per_s'] / 1e9:.0f} GOP/s", cell["percent_of_arithmetic"]
    return f"{time}, {rate}, **{percent:.0f} %**"


def _spread_of(rates: list[float]) -> str:
    median, low, high = (each / 1e9 for each in (statistics.median(rates), min(rates), max(rates)))
    digits = 1 if median < 100 else 0
    return f"{median:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def _by_format(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """A number format, our run of it, and the peers' runs with as many bits."""
    for dtype, group in groupby(result["runs"], key=lambda run: run["format"]):
        ours, *others = group
        yield dtype, ours, others


def _ratios(ours: dict[str, Any], others: list[dict[str, Any]], batches: list[int]) -> list[str]:
    """The time of the fastest peer over ours, for each batch."""
    own = {cell["batch"]: cell["seconds"] for cell in ours["cells"]}
    cells = [cell for run in others for cell in run["cells"]]
    # Results from before turns were short have no ratio.
    ratio = {
        batch: min(
            cell.get("ratio", cell["seconds"] / own[batch]) for cell in cells if cell["batch"] == batch
        )
        for batch in batches
    }
    return [f"**{ratio[batch]:.2f}×**" for batch in batches]


def _batches(result: dict[str, Any]) -> list[int]:
    return sorted({cell["batch"] for run in result["runs"] for cell in run["cells"]})


def _tokens(batches: list[int]) -> list[str]:
    return [f"{batch} token{'s' if batch > 1 else ''}" for batch in batches]


def _peers_summary(result: dict[str, Any]) -> str:
    batches = _batches(result)
    rows = [[dtype, *_ratios(ours, others, batches)] for dtype, ours, others in _by_format(result) if others]
    peers = sorted({run["engine"] for run in result["runs"]} - {"lsg"})
    return section(
        result["machine"],
        f"Against the fastest of {', '.join(peers)}.",
        ["bits as", *_tokens(batches)],
        rows,
        spread="",
    )


def _peers(result: dict[str, Any]) -> str:
    batches = _batches(result)
    rows = []
    for dtype, ours, others in _by_format(result):
        for run in (ours, *others):
            by_batch = {cell["batch"]: cell for cell in run["cells"]}
            rows.append(
                [dtype, f"{run['engine']} {run['name']}", *(_peers_cell(by_batch[b]) for b in batches)]
            )
        if others:
            rows.append([dtype, "**lsg against the best of them**", *_ratios(ours, others, batches)])
    memory = _spread_of(
        [
            cell["memory_bytes_per_s"]
            for run in result["runs"]
            if run["engine"] == "lsg"
            for cell in run["cells"]
        ]
    )
    what = (
        f"Shape {result['shape']} ({result['model']}), one layer, cold weights, `--load {result['load']}`; "
        f"{memory} GB/s read from memory. ms a layer, GB/s of the chosen experts."
    )
    head = ["bits as", "engine", *_tokens(batches)]
    return section(result["machine"], what, head, rows)


def _peers_cell(cell: dict[str, Any]) -> str:
    ms = 1e3 * cell["seconds"]
    return f"{ms:.3g} ms, {cell['bytes'] / cell['seconds'] / 1e9:.1f}" if ms < 100 else f"{ms:.0f} ms"


def _kill(result: dict[str, Any]) -> str:
    head = [
        "conversions",
        "kills",
        "with work begun",
        "full disks",
        "damaged shards",
        "byte-identical in the end",
    ]
    numbers = [result[key] for key in ("runs", "kills", "kills_while_working", "full_disks", "bad_shards")]
    row = [*map(str, numbers), f"{result['identical']} of {result['runs']}"]
    return table("", head, [row]).lstrip("\n")


# Columns of the families table: heading, and which encodings it gathers.
ENCODINGS = {
    "BF16, FP16": ("half",),
    "FP8": ("fp8",),
    "INT4, INT8 (compressed-tensors)": ("pack-quantized", "int-quantized"),
    "AWQ": ("awq",),
    "GPTQ": ("gptq",),
    "MXFP4": ("mxfp4",),
    "NVFP4": ("nvfp4",),
}


def _families(result: dict[str, Any]) -> str:
    rows: dict[str, list[str]] = {}
    for case in result["cases"]:
        rows.setdefault(case["model"], [""] * len(ENCODINGS))
    served = {
        (case["model"], case["format"], "S" if case.get("where", run["where"]) == "CPU" else "G")
        for run in result["served"]
        for case in run["cases"]
        if case["state"] == "served"
    }
    for column, encodings in enumerate(ENCODINGS.values()):
        for model, row in rows.items():
            chosen = [c for c in result["cases"] if c["model"] == model and c["encoding"] in encodings]
            row[column] = _families_cell(chosen, served)
    good = sum(case["computed"] for case in result["cases"])
    what = (
        f"{len(result['cases'])} small checkpoints with the published names and encodings, commit "
        f"{result['commit']}: {good} converted, verified and computed. C: converts with `--experts "
        "keep`; V: every weight is the checkpoint's (bf16 and int4: within their rounding) and every other "
        "tensor is unchanged; E: the engine computes what the weights give in float64; S: served by sglang "
        "on a CPU, G: on a GPU, everything but the experts in BF16, with transformers' log-probabilities; in "
        "brackets: variants."
    )
    by_place: dict[tuple[str, str], list[str]] = {}
    for run in result["served"]:
        for case in run["cases"]:
            if case["state"] == "served":
                place = (case.get("where", run["where"]), case.get("sglang", run["sglang"]))
                by_place.setdefault(place, []).append(case.get("commit", run["commit"]))
    for (where, release), commits in by_place.items():
        distinct = ", ".join(dict.fromkeys(commits))
        what += f" {where}, sglang {release}: {len(commits)} served, commit {distinct}."
    head = ["model", *ENCODINGS]
    return table(what, head, [[model, *row] for model, row in rows.items()])


def _families_cell(cases: list[dict[str, Any]], served: set[tuple[str, str, str]]) -> str:
    """Variants that got equally far share a mark; those that were not computed are named."""
    marks: dict[str, list[str]] = {}
    steps = (("C", "converted"), ("V", "verified"), ("E", "computed"))
    for case in cases:
        mark = "".join(letter for letter, key in steps if case[key]) or "fails"
        mark += "".join(where for where in "SG" if (case["model"], case["format"], where) in served)
        marks.setdefault(mark, []).append(case["format"])
    return "; ".join(
        f"{mark} ({len(names)})" if mark.startswith("CVE") else f"{mark}: {', '.join(names)}"
        for mark, names in marks.items()
    )


# Tables that show another one's results.
SOURCES = {"engine_summary": "engine", "peers_summary": "peers"}
# Each takes the content of a result file.
TABLES: dict[str, Callable[[Any], str]] = {
    "convert": _convert,
    "cross_node": memory_tables.cross_node,
    "decode": gpu_tables.decode,
    "doctor": memory_tables.doctor,
    "engine": _engine,
    "engine_summary": _engine_summary,
    "families": _families,
    "gpu_proof": gpu_tables.proof,
    "hand_over": gpu_tables.hand_over,
    "kill": _kill,
    "load": memory_tables.load,
    "numa": memory_tables.numa,
    "overlap": gpu_tables.overlap,
    "parallel": gpu_tables.parallel,
    "gpu_draft": gpu_tables.draft,
    "peers": _peers,
    "peers_summary": _peers_summary,
    "power": memory_tables.power,
}

if __name__ == "__main__":
    main()
