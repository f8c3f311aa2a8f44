"""A pytest plugin (`-p sanitized`): the core that `make sanitize` built stands in for the installed one."""

import importlib.util
import sys
from pathlib import Path

[_built] = (Path(__file__).parents[1] / "build" / "asan" / "csrc").glob("_core.*.so")
_spec = importlib.util.spec_from_file_location("lsg._core", _built)
assert _spec is not None
assert _spec.loader is not None
_core = importlib.util.module_from_spec(_spec)
sys.modules["lsg._core"] = _core
_spec.loader.exec_module(_core)
