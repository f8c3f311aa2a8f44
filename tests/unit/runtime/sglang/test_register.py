import sys

import pytest

from lsg import CompatError
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
