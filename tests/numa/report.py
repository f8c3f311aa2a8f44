"""Judges what an emulated machine reported: every fault is a sentence, every scenario a row.

Invariant: what is right follows from the machine as it was made, and from the first machine's results.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numa.machines import Machine
from numa.rounding import Expected

# Of the pages of each node's unit range.
RIGHT_SHARE = 0.999
PAGE = 4096


@dataclass
class Row:
    """One scenario in one machine.

    pages_right of pages_total: on their node. result_equal: bit for bit. prompt_error: of a long prompt's
    results, as a share of what rounding allows.
    """

    machine: str
    scenario: str
    nodes: int = 0
    pages_right: int = 0
    pages_total: int = 0
    threads_right: int = 0
    threads_total: int = 0
    result_equal: bool | None = None
    prompt_error: float | None = None
    seconds: float = 0.0
    note: str = ""
    faults: list[str] = field(default_factory=list)


def judge(
    machine: Machine,
    reports: Sequence[dict[str, Any]],
    reference: Sequence[str],
    prompt: Expected,
    ended: str = "",
) -> list[Row]:
    """A row for every scenario of the machine.

    reference: digests of the first machine's first load. prompt: what long prompts should give. ended: why
    there are no more reports.
    """
    by_name = {report["scenario"]: report for report in reports}
    missing = {"error": ended or "gave no report; see the console's log"}
    return [
        _judge(machine, name, by_name.get(name, missing), reference, prompt) for name in machine.scenarios
    ]


def _judge(
    machine: Machine,
    name: str,
    report: dict[str, Any],
    reference: Sequence[str],
    prompt: Expected,
) -> Row:
    row = Row(machine.name, name, seconds=report.get("seconds", 0.0))
    if "error" in report:
        row.faults.append(report["error"])
        return row
    kind, _, argument = name.partition(":")
    if kind == "doctor":
        _judge_doctor(machine, report, row)
    elif kind == "reading":
        _judge_reading(machine, report, row)
    elif kind == "short" and not argument.endswith("-spill"):
        _judge_refusal(report, row)
    else:
        _judge_load(machine, name, report, row)
        _check_results(report, reference, prompt, row)
    return row


def _check_results(report: dict[str, Any], reference: Sequence[str], prompt: Expected, row: Row) -> None:
    row.result_equal = report["digests"] == list(reference)
    if not row.result_equal:
        row.faults.append(f"results {report['digests']}, on one node {list(reference)}")
    found = np.frombuffer(base64.b64decode(report["prompt"]), np.float32)
    row.prompt_error = prompt.worst(found.reshape(prompt.value.shape))
    # NaN is no good either.
    if not row.prompt_error <= 1:
        row.faults.append(f"a long prompt is off by {row.prompt_error:.3g} times what rounding allows")


def _judge_load(machine: Machine, name: str, report: dict[str, Any], row: Row) -> None:
    confined = name.startswith("cpuset")
    spilled = name.startswith("short")
    homes = [report["node"]] if confined else machine.working_nodes()
    _check_teams(machine, homes, report, row)
    _check_ranges(report, row)
    _check_threads(report, row)
    if name.startswith("restart") and report["read_bytes"]:
        row.faults.append(f"a restart read {report['read_bytes']} bytes from the disk")
    row.nodes = len(homes)
    for node, counts in report["pages"].items():
        right, total = counts.get(node, 0), sum(counts.values())
        row.pages_right += right
        row.pages_total += total
        elsewhere = {where: n for where, n in counts.items() if where != node}
        if counts.get("missing") or any(where.lstrip("-") != where for where in counts):
            row.faults.append(f"pages of node {node}'s units are not in memory: {elsewhere}")
        elif right < RIGHT_SHARE * total and not spilled:
            row.faults.append(
                f"{right} of {total} pages of node {node}'s units are there, {elsewhere} are not"
            )
    if spilled:
        if row.pages_right == row.pages_total:
            row.faults.append("nothing spilled, so memory was not short")
        row.note = f"{row.pages_total - row.pages_right} pages on a neighbour"
    mapped = sum(report["numa_maps"].values())
    # A mapping also holds a header, a table, and up to 2 MiB of padding a node.
    if not row.pages_total <= mapped <= row.pages_total * 1.02 + 1024 * len(homes):
        row.faults.append(f"numa_maps counts {mapped} pages, the unit ranges have {row.pages_total}")
    for node in homes:
        if report["numa_maps"].get(str(node), 0) < report["pages"].get(str(node), {}).get(str(node), 0):
            row.faults.append(f"numa_maps and move_pages differ about node {node}")
    # Of units that spilled the engine expects no better.
    said = report["engine_says"]["total" if spilled else "right"]
    if said != (row.pages_total if spilled else row.pages_right) * PAGE:
        row.faults.append(f"the engine's own survey says {report['engine_says']}")


def _check_teams(machine: Machine, homes: list[int], report: dict[str, Any], row: Row) -> None:
    """Every home has workers, on its own cores or on those of a node without memory that is nearest to it."""
    if [team["node"] for team in report["teams"]] != homes:
        row.faults.append(f"workers for nodes {[team['node'] for team in report['teams']]}, expected {homes}")
        return
    for team in report["teams"]:
        usable = {cpu for node in machine.served_by(team["node"]) for cpu in machine.cpus_of(node)}
        outside = {cpu for cpus in team["cpus"] for cpu in cpus} - usable
        if outside:
            row.faults.append(f"workers of node {team['node']} on CPUs {sorted(outside)} of other nodes")


def _check_ranges(report: dict[str, Any], row: Row) -> None:
    """Ranges follow each other and are in proportion to cores."""
    cores = [team["cores"] for team in report["teams"]]
    for ranges in report["ranges"]:
        units = ranges[-1][2]
        ends = [0, *(end for _, _, end in ranges)]
        whole = all(begin == end for (_, begin, _), end in zip(ranges, ends, strict=False))
        fair = all(
            abs((end - begin) - units * mine / sum(cores)) < 1
            for (_, begin, end), mine in zip(ranges, cores, strict=True)
        )
        if not (whole and fair):
            row.faults.append(f"unit ranges {ranges} for {cores} cores")


def _check_threads(report: dict[str, Any], row: Row) -> None:
    """Each worker may run exactly where the plan has it, and did so last."""
    # A worker that may run anywhere is the calling thread.
    planned = [cpus for team in report["teams"] for cpus in team["cpus"] if cpus]
    row.threads_total = len(planned)
    for worker in report["workers"]:
        if worker["allowed"] in planned and worker["last"] in worker["allowed"]:
            planned.remove(worker["allowed"])
            row.threads_right += 1
    if row.threads_right != row.threads_total:
        row.faults.append(f"no worker is pinned to {planned}, there are {report['workers']}")


def _judge_refusal(report: dict[str, Any], row: Row) -> None:
    refusal = report.get("refusal", "")
    row.note = refusal
    if not refusal.startswith("CapacityError") or "spill" not in refusal:
        row.faults.append(f"expected a CapacityError that names --spill, got {refusal or 'a loaded model'}")


def _judge_reading(machine: Machine, report: dict[str, Any], row: Row) -> None:
    row.nodes = len(machine.working_nodes())
    for pair, pages in report["pages_read"].items():
        reader, _, owner = pair.partition(" reads ")
        right = int(reader) in machine.served_by(int(owner))
        row.pages_right += pages if right else 0
        row.pages_total += pages
    if row.pages_right != row.pages_total or not row.pages_total:
        row.faults.append(f"pages were read across nodes: {report['pages_read']}")


def _judge_doctor(machine: Machine, report: dict[str, Any], row: Row) -> None:
    """The topology that `lsg doctor` sees is the one that was made."""
    topology = report["doctor"]["machine"]["host"]["topology"]
    row.nodes = len(topology["nodes"])
    cores = sum(node.cpus for node in machine.nodes) // machine.threads_per_core
    if len(topology["cores"]) != cores:
        row.faults.append(f"doctor sees {len(topology['cores'])} cores of {cores}")
    if [node["index"] for node in topology["nodes"]] != list(range(len(machine.nodes))):
        row.faults.append(f"doctor sees nodes {[node['index'] for node in topology['nodes']]}")
        return
    for made, seen in zip(machine.nodes, topology["nodes"], strict=True):
        mib = seen["memory_bytes"] / 2**20
        # The kernel takes its own image and page tables off.
        if seen["cpus"] != list(machine.cpus_of(seen["index"])) or not 0.8 * made.mib <= mib <= made.mib:
            row.faults.append(f"doctor sees node {seen['index']} with CPUs {seen['cpus']} and {mib:.0f} MiB")
    words = " ".join(finding["found"] for finding in report["doctor"]["findings"])
    for number, node in enumerate(machine.nodes):
        if not (node.cpus and node.mib) and f"node {number}" not in words:
            row.faults.append(f"doctor does not mention node {number}, which lacks CPUs or memory")
