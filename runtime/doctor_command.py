"""`lsg doctor`: this machine, and what to change about it, on a terminal or as JSON."""

import dataclasses
import json
import os

import click

from lsg import LsgError
from lsg._core import select_isa
from lsg.runtime import console, doctor, doctor_facts, settings
from lsg.runtime.doctor import Finding
from lsg.runtime.doctor_facts import Facts


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Everything that was found, for programs.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks.")
def doctor_command(as_json: bool, verbose: bool) -> None:
    """Look at this machine: where its memory, cores and GPUs are, and what slows experts down."""
    try:
        facts = doctor_facts.observe(select_isa(settings.read(os.environ).isa).name.lower())
        findings = doctor.examine(facts)
    except LsgError as error:
        console.error(error, with_traceback=verbose, command="lsg doctor")
        raise SystemExit(1) from None
    if as_json:
        body = {"machine": dataclasses.asdict(facts), "findings": [*map(dataclasses.asdict, findings)]}
        click.echo(json.dumps(body, indent=1))
        return
    _show(facts, findings)


def _show(facts: Facts, findings: list[Finding]) -> None:
    topology, homes = facts.host.topology, facts.host.home_nodes
    console.table(
        ["node", "CPUs", "memory", "available", "distances"],
        [
            [
                f"{node.index}{'' if node.index in homes else ' (no experts)'}",
                ranges(node.cpus) or "none",
                console.size(node.memory_bytes),
                console.size(node.available_bytes),
                " ".join(str(distance) for _, distance in node.distances),
            ]
            for node in topology.nodes
        ],
    )
    for finding in findings:
        console.finding(finding.level, finding.topic, finding.found, finding.why, finding.action)


def ranges(numbers: tuple[int, ...]) -> str:
    """The kernel's list format, the other way round: 0, 1, 2, 5 is "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
