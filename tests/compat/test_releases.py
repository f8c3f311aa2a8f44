"""Every sglang release at hand has all that lsg pins of it, and no option that lsg-serve takes for itself.

The installed release is always checked. SGLANG_SOURCES names a directory of unpacked wheels, `*/sglang` below
it.
"""

import ast
import os
from pathlib import Path

import pytest

from lsg.runtime import cli, launch, settings
from lsg.runtime.sglang import compat

SOURCES = os.environ.get("SGLANG_SOURCES")
ROOTS = [compat.installed_root(), *(sorted(Path(SOURCES).glob("*/sglang")) if SOURCES else [])]


@pytest.fixture(params=ROOTS, ids=compat.version)
def root(request):
    return request.param


def test_everything_pinned_is_there(root):
    compat.check(root)


def test_sources_hold_both_ends_of_the_range():
    if not SOURCES:
        pytest.skip("SGLANG_SOURCES is not set: only the installed release is checked")
    found = {tuple(map(int, compat.version(root).split("."))) for root in ROOTS}
    assert {compat.OLDEST, compat.NEWEST} <= found


def options(root):
    """All options of sglang's server: fields of its argument classes, and options added by hand."""
    files = [root / "srt/server_args.py", *(root / "srt/arg_groups").glob("**/*.py")]
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                fields = [child.target for child in node.body if isinstance(child, ast.AnnAssign)]
                names |= {
                    "--" + field.id.replace("_", "-") for field in fields if isinstance(field, ast.Name)
                }
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--")
            ):
                names.add(node.value)
    return names


def test_no_option_of_sglang_is_taken_by_lsg_serve(root):
    theirs = options(root)
    assert {"--model-path", "--port", "--tp-size", "--disable-decode-cuda-graph"} <= theirs
    # What tells a process which of its machine's it is.
    places = ("device", "nnodes", "pp-size", "dp-size", "enable-dp-attention", "base-gpu-id", "gpu-id-step")
    assert {f"--{place}" for place in places} <= theirs
    ours = {name for parameter in cli.main.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert not (ours | set(settings.LATER_OPTIONS)) & theirs


def test_the_runner_that_offloaded_experts_ask_for_can_be_chosen(root):
    # Newer releases have the choices in a file of their own.
    files = [root / "srt/server_args.py", *(root / "srt/arg_groups").glob("**/*.py")]
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    choices = next(
        ast.literal_eval(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MOE_RUNNER_BACKEND_CHOICES"
    )
    assert {"auto", "triton"} <= set(choices)
    assert {launch.RUNNER_OPTION, launch.DRAFT_RUNNER_OPTION} <= options(root)
