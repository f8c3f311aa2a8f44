"""An emulated machine that stops anywhere is switched off with a sentence that says where.

The emulator is a shell script here. Limits that a test is to reach are short, the others long.
"""

import json
import shlex
import time

import pytest

from numa.boot import Limits, boot

LONG = 60.0
SHORT = 0.5
REPORTS = [{"scenario": "doctor"}, {"scenario": "serve:map"}]


def start(tmp_path, script, *, deadline=LONG, **limits):
    """Boot `script`, which finds the path of the report in $REPORT, with long limits but those named."""
    report = tmp_path / "report"
    command = ["sh", "-c", f"REPORT={shlex.quote(str(report))}; {script}"]
    longest = dict.fromkeys(("first_line", "start", "scenario", "power_off"), LONG)
    return boot(
        command,
        tmp_path / "console",
        report,
        len(REPORTS),
        Limits(**longest | limits),
        time.monotonic() + deadline,
    )


def lines(*values):
    return " ".join(f"echo {shlex.quote(json.dumps(value))} >> $REPORT;" for value in values)


RUNS = "echo Linux; " + lines({"uptime_s": 1.0})


def test_a_machine_that_switches_itself_off(tmp_path):
    found = start(tmp_path, RUNS + lines(*REPORTS))
    assert (found.reports, found.ended, found.hiccups) == (REPORTS, "", 0)
    assert (tmp_path / "console").read_text() == "Linux\n"


@pytest.mark.parametrize(
    ("script", "limit", "reports", "sentence"),
    [
        (RUNS + lines(REPORTS[0]) + "exec sleep 600", "scenario", REPORTS[:1], "no report after 0.5 s"),
        (
            RUNS + lines(*REPORTS) + "exec sleep 600",
            "power_off",
            REPORTS,
            "not switched off by itself after 0.5 s",
        ),
    ],
)
def test_a_machine_that_stops_is_switched_off(tmp_path, script, limit, reports, sentence):
    found = start(tmp_path, script, **{limit: SHORT})
    assert (found.reports, found.hiccups) == (reports, 0)
    assert found.ended == f"{sentence}; the machine was switched off"


def test_half_a_line_is_no_report(tmp_path):
    found = start(tmp_path, RUNS + "printf '{\"scen' >> $REPORT; exec sleep 600", scenario=SHORT)
    assert found.reports == []


SILENT = ("", "first_line", "no line on the console")
STUCK = ("echo Linux; ", "start", "the first process did not run")


@pytest.mark.parametrize(("said", "limit", "sentence"), [SILENT, STUCK])
def test_a_machine_that_never_gets_to_a_process_is_started_once_more(tmp_path, said, limit, sentence):
    once = f"if test ! -e {tmp_path}/again; then touch {tmp_path}/again; {said}exec sleep 600; fi; "
    found = start(tmp_path, once + RUNS + lines(*REPORTS), **{limit: SHORT})
    assert (found.reports, found.ended, found.hiccups) == (REPORTS, "", 1)


@pytest.mark.parametrize(("said", "limit", "sentence"), [SILENT, STUCK])
def test_and_not_a_third_time(tmp_path, said, limit, sentence):
    found = start(tmp_path, f"echo >> {tmp_path}/starts; {said}exec sleep 600", **{limit: SHORT})
    assert (found.reports, found.hiccups) == ([], 2)
    assert found.ended == f"{sentence} after 0.5 s; the machine was switched off"
    assert (tmp_path / "starts").read_text() == "\n\n"


def test_an_emulator_that_fails(tmp_path):
    found = start(tmp_path, "echo no such device; exit 3")
    assert (found.ended, found.hiccups) == ("the emulator ended with exit code 3", 0)


def test_the_time_for_all_machines(tmp_path):
    found = start(tmp_path, RUNS + "exec sleep 600", deadline=SHORT)
    assert found.ended == "no report when the time for all machines was over; the machine was switched off"
