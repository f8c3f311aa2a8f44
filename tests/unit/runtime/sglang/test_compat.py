import pytest

from lsg import CompatError
from lsg.runtime.sglang import compat
from lsg.runtime.sglang.compat import Pin

SOURCE = """
class Runner:
    field: int = 0
    constant = 1

    def __init__(self, args):
        self.args, self.rest = args

    def load(self, path, *, retries=1): ...


def free(a, b): ...
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "_version.py").write_text("__version__ = version = '0.5.17'\n")
    (tmp_path / "a.py").write_text(SOURCE)
    monkeypatch.setattr(compat, "PINS", ())
    return tmp_path


def test_a_release_in_range_without_pins_fits(root):
    compat.check(root)
    assert compat.version(root) == "0.5.17"


@pytest.mark.parametrize("release", ["0.5.14", "0.5.24", "0.6.0", "0.4.99.post1"])
def test_other_releases_are_refused(release, root):
    (root / "_version.py").write_text(f"__version__ = version = '{release}'\n")
    with pytest.raises(CompatError, match=rf"sglang {release} is installed, .* 0\.5\.15 to 0\.5\.23"):
        compat.check(root)


def test_a_directory_that_is_no_release_is_refused(tmp_path):
    with pytest.raises(CompatError, match="not a release of sglang"):
        compat.check(tmp_path)


@pytest.mark.parametrize(
    ("pin", "problem"),
    [
        (Pin("a.py", "Runner", ("field", "constant", "args", "rest"), ""), None),
        (Pin("a.py", "Runner.load", ("self", "path", "retries"), "", exact=True), None),
        (Pin("a.py", "free", ("a",), ""), None),
        (Pin("a.py", "Runner", ("model",), "reads it"), "Runner has no model .*reads it"),
        (Pin("a.py", "Runner.load", ("self", "path"), "", exact=True), r"takes \(self, path, retries\)"),
        (Pin("a.py", "Runner.save", (), ""), "Runner.save is gone"),
        (Pin("a.py", "Other.load", (), ""), "Other.load is gone"),
        (Pin("b.py", "free", (), ""), "the file is gone"),
    ],
)
def test_pins(pin, problem, root, monkeypatch):
    monkeypatch.setattr(compat, "PINS", (pin,))
    if problem is None:
        compat.check(root)
    else:
        with pytest.raises(CompatError, match=problem):
            compat.check(root)
