"""The judge finds what is wrong: one report that is right, and one change for each way to be wrong."""

import base64
import copy

import numpy as np
import pytest

from numa.machines import Machine, Node
from numa.report import judge
from numa.rounding import Expected

MACHINE = Machine("two", (Node(2, 512), Node(2, 512)), ("serve:map",))
PROMPT = Expected(np.array([[1.0, 2.0]]), np.array([[0.5, 0.25]]))


def encoded(*values):
    return base64.b64encode(np.array(values, np.float32)).decode()


REPORT = {
    "scenario": "serve:map",
    "teams": [{"node": 0, "cpus": [[0], [1]], "cores": 2}, {"node": 1, "cpus": [[2], [3]], "cores": 2}],
    "ranges": [[[0, 0, 11], [1, 11, 21]]],
    "workers": [{"allowed": [cpu], "last": cpu} for cpu in range(4)],
    "digests": ["abc"],
    "prompt": encoded(1.25, 2.0),
    "read_bytes": 0,
    "pages": {"0": {"0": 9999, "1": 1}, "1": {"1": 10000}},
    "numa_maps": {"0": 10001, "1": 10004},
    "engine_says": {"right": 19999 * 4096, "total": 20000 * 4096},
    "seconds": 1.0,
}


def faults(report, machine=MACHINE):
    [row] = judge(machine, [report], ["abc"], PROMPT)
    return row.faults


def test_a_right_report_is_right():
    [row] = judge(MACHINE, [REPORT], ["abc"], PROMPT)
    assert row.faults == []
    assert (row.pages_right, row.pages_total, row.threads_right, row.threads_total) == (19999, 20000, 4, 4)
    assert (row.result_equal, row.prompt_error) == (True, 0.5)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("pages", "0"), {"0": 9900, "1": 100}, "9900 of 10000 pages of node 0"),
        (("pages", "1"), {"1": 9999, "-2": 1}, "not in memory"),
        (("pages", "1"), {"1": 9999, "missing": 1}, "not in memory"),
        (("numa_maps",), {"0": 10001, "1": 9000}, "numa_maps"),
        (("engine_says", "right"), 20000 * 4096, "own survey"),
        (("digests",), ["abd"], "on one node"),
        (("prompt",), encoded(1.0, 2.5), "off by 2 times"),
        (("prompt",), encoded(1.0, np.nan), "off by nan times"),
        (("workers", 2), {"allowed": [2], "last": 0}, "no worker is pinned to [[2]]"),
        (("workers", 2), {"allowed": [1], "last": 1}, "no worker is pinned to [[2]]"),
        (("teams", 1, "cpus"), [[0], [3]], "on CPUs [0] of other nodes"),
        (("teams", 1, "node"), 0, "expected [0, 1]"),
        (("ranges", 0), [[0, 0, 12], [1, 12, 21]], "unit ranges"),
        (("ranges", 0), [[0, 0, 11], [1, 10, 21]], "unit ranges"),
    ],
)
def test_every_wrong_is_found(path, value, sentence):
    report = copy.deepcopy(REPORT)
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(sentence in fault for fault in faults(report))


def test_silence_and_failure_are_wrong():
    [row] = judge(MACHINE, [], ["abc"], PROMPT)
    assert "no report" in row.faults[0]
    [row] = judge(MACHINE, [], ["abc"], PROMPT, "the first process did not run after 9 s")
    assert row.faults == ["the first process did not run after 9 s"]
    assert faults({"scenario": "serve:map", "error": "exit code 1"}) == ["exit code 1"]


def test_the_cores_of_a_node_without_memory_serve_the_nearest():
    machine = Machine("three", (Node(1, 64), Node(1, 0), Node(1, 0), Node(1, 64), Node(0, 64)), ())
    assert [machine.served_by(home) for home in machine.working_nodes()] == [[0, 1], [2, 3]]
