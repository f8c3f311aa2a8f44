"""Every argument of sglang's own parser, with values, reaches sglang as it was given."""

import argparse
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lsg import CompatError
from lsg.runtime import cli, host, launch
from lsg.runtime.settings import Settings

# The model comes as lsg-serve's own argument, and the help is its own.
NOT_PASSED = {"--model-path", "--model", "--help", "-h"}
# What cannot go together with offloaded experts, each refused with its name in the sentence.
REFUSED = {
    **dict.fromkeys(launch.PREFILL_GRAPH_OPTIONS, "prefill of offloaded experts"),
    **dict.fromkeys(launch.EP_OPTIONS, "--ep-size"),
}
SAMPLES = {int: "7", float: "0.25"}


@pytest.fixture(scope="module")
def given(sglang_import):
    """Option -> its command line words, all options of the installed release."""
    parser = argparse.ArgumentParser()
    sglang_import("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    words = {}
    for action in parser._actions:
        value = (
            str(action.choices[0]) if isinstance(action.choices, list) else SAMPLES.get(action.type, "-1 x")
        )
        count = {None: 1, "?": 1, "+": 2, "*": 2, 0: 0}[action.nargs]
        words |= {name: [name, *[value] * count] for name in action.option_strings if name not in NOT_PASSED}
    assert len(words) > 400
    return words


@pytest.fixture
def executed(monkeypatch):
    """What lsg-serve becomes, on a machine with a GPU and without settings."""
    for name in [name for name in os.environ if name.startswith(("LSG_", "LVLLM_", "LK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(host, "gpu_count", lambda: 1)
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize("joined", [False, True], ids=["--name value", "--name=value"])
def test_everything_at_once_to_an_ordinary_directory(given, executed, checkpoint, joined):
    """The whole command is stock sglang's."""
    arguments = [
        word
        for words in given.values()
        for word in (["=".join(words)] if joined and len(words) == 2 else words)
    ]
    finished = CliRunner().invoke(cli.main, [str(checkpoint), *arguments], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    ((program, argv, _),) = executed
    assert program == sys.executable
    assert argv[1:] == ["-m", "sglang.launch_server", "--model-path", str(checkpoint), *arguments]


class Model:
    """As much of a RepackedModel as planning needs."""

    directory = Path("/models/x")
    expert_bytes = 1


@pytest.mark.parametrize("gpus", [0, 1])
def test_each_to_a_repacked_directory(given, gpus):
    def plan(words):
        return launch.plan(Model.directory, Model, words, Settings(), host.flat(512, 1 << 40), gpus, {})

    refused = {name for name in REFUSED if name in given and (gpus or name in launch.EP_OPTIONS)}
    for name, words in given.items():
        if name in refused:
            with pytest.raises(CompatError, match=REFUSED[name]):
                plan(words)
        else:
            assert plan(words).argv[-len(words) :] == words
