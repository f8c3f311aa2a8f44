import os
import sys

import pytest
from click.testing import CliRunner

from lsg import CompatError
from lsg.runtime import cli, host
from lsg.runtime import sglang as plugin
from lsg.runtime.sglang import compat, hooks


@pytest.fixture
def installed(monkeypatch):
    """What install() would do, without sglang."""
    calls = []
    monkeypatch.setattr(hooks, "install", lambda: calls.append("installed"))
    return calls


def test_a_release_that_fits_gets_the_hooks(installed, monkeypatch):
    monkeypatch.setattr(compat, "check", lambda root: None)
    plugin.register()
    assert installed == ["installed"]


@pytest.mark.parametrize("error", [CompatError("sglang 9 is installed"), ImportError("no such name")])
@pytest.mark.parametrize("spelling", ["--model-path={}", "{}"])
def test_what_goes_wrong_is_fatal_for_a_repacked_directory(error, spelling, installed, monkeypatch, repacked):
    def check(root):
        raise error

    monkeypatch.setattr(compat, "check", check)
    monkeypatch.setattr(sys, "argv", ["launch_server", "--port", "1", spelling.format(repacked)])
    with pytest.raises(SystemExit) as caught:
        plugin.register()
    assert str(caught.value) == f"lsg cannot serve {repacked}: {error}"
    assert not installed


def test_what_goes_wrong_leaves_ordinary_directories_alone(installed, monkeypatch, checkpoint, caplog):
    def check(root):
        msg = "sglang 9 is installed"
        raise CompatError(msg)

    monkeypatch.setattr(compat, "check", check)
    monkeypatch.setattr(sys, "argv", ["launch_server", "--model-path", str(checkpoint)])
    plugin.register()
    assert not installed
    assert "sglang 9 is installed" in caplog.text


@pytest.mark.parametrize("name", ["LVLLM_MOE_NUMA_ENABLED", "LK_MOE_HYBRID_ENABLED"])
def test_switched_off_nothing_is_installed(name, installed, monkeypatch, checkpoint):
    monkeypatch.setattr(compat, "check", lambda root: pytest.fail("looked at sglang"))
    monkeypatch.setattr(sys, "argv", ["launch_server", "--model-path", str(checkpoint)])
    monkeypatch.setenv(name, "0")
    plugin.register()
    assert not installed


def test_switched_off_a_repacked_directory_is_refused(installed, monkeypatch, repacked):
    monkeypatch.setattr(sys, "argv", ["launch_server", "--model-path", str(repacked)])
    monkeypatch.setenv("LVLLM_MOE_NUMA_ENABLED", "0")
    with pytest.raises(SystemExit, match=r"^lsg cannot serve .*--no-hybrid cannot serve it"):
        plugin.register()
    assert not installed


def test_the_switch_of_lsg_serve_reaches_the_plugin(monkeypatch, installed, checkpoint):
    """`--no-hybrid` becomes the variable, in the environment of every process that sglang starts."""
    monkeypatch.setattr(host, "gpu_count", lambda: 1)
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    finished = CliRunner().invoke(cli.main, [str(checkpoint), "--no-hybrid"], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    ((_, argv, environ),) = calls
    assert argv[3:] == ["--model-path", str(checkpoint)]
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(sys, "argv", argv)
    plugin.register()
    assert not installed
