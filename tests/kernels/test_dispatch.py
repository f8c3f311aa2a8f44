"""Which level runs, and that a level's objects stay inside their namespace."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lsg import UnsupportedIsaError, _core

LEVELS = [isa.name.lower() for isa in _core.Isa]


def test_levels_are_a_chain_from_scalar():
    usable = [isa.name.lower() for isa in _core.isa_levels()]
    assert usable == LEVELS[: len(usable)]
    assert _core.select_isa() == _core.isa_levels()[-1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_obeyed_or_refused(level: str):
    if level in [isa.name.lower() for isa in _core.isa_levels()]:
        engine = _core.Engine(threads=1, isa=level)
        assert engine.isa.name.lower() == level
        assert LEVELS.index(_core.kernel_isa(level).name.lower()) <= LEVELS.index(level)
    else:
        with pytest.raises(UnsupportedIsaError, match=f"'{level}' is above what this processor has"):
            _core.Engine(threads=1, isa=level)


def test_unknown_level_is_refused():
    with pytest.raises(UnsupportedIsaError, match="unknown ISA level 'sse9'; usable here: scalar"):
        _core.select_isa("sse9")


def test_the_module_exports_its_entry_only():
    """Anything else could be taken up by a library that is loaded later, such as torch."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    listed = subprocess.run(
        [nm, "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["PyInit__core"]


def test_isa_objects_export_their_namespace_only():
    """The linker may keep an AVX-512 object's weak symbol for everybody, which crashes older processors."""
    nm = shutil.which("nm")
    # Of the wheel's builds: sanitizers and coverage add symbols of their own.
    build = Path(__file__).parents[2] / "build"
    objects = sorted(
        path
        for room in ("kernels", "limits")
        for path in build.glob(f"cp*/csrc/CMakeFiles/lsg_*.dir/{room}/*.o")
        if "lsg_core" not in str(path)
    )
    if nm is None or not objects:
        pytest.skip("needs the build tree and nm")
    for path in objects:
        level = path.name.split(".")[0]
        symbols = subprocess.run(
            [nm, "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        exported = re.findall(r"^[0-9a-f]* ([A-Zuvw]) (.*)$", symbols, re.MULTILINE)
        foreign = [line for line in exported if not line[1].startswith(f"lsg::{level}::")]
        assert not foreign, f"{path.name} exports {foreign}"
        assert any(kind == "T" for kind, _ in exported)
