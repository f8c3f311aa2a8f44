"""The real torchvision, after declaring the operator schemas without which it cannot be imported.

When torchvision's own operators load, nothing is declared; when it is not installed, importing it fails as
ever.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import torch

NAME = "torchvision"
# Those whose meta kernels torchvision registers while it is imported, whether its operators loaded or not.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def find_real() -> ModuleSpec:
    """Where the installed torchvision is. Raises ModuleNotFoundError when there is none."""
    here = Path(__file__).resolve().parents[1]
    spec = PathFinder.find_spec(NAME, [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is None or spec.loader is None or spec.origin is None:
        msg = f"No module named {NAME!r}"
        raise ModuleNotFoundError(msg, name=NAME)
    return spec


def operators_load(package: Path) -> bool:
    """Whether torchvision's compiled operators fit the installed torch."""
    try:
        for library in package.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def hand_over() -> None:
    """Import the real package in place of this one."""
    spec = find_real()
    module = module_from_spec(spec)
    if not operators_load(Path(str(spec.origin)).parent):
        library = torch.library.Library(NAME, "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        # A schema lives as long as its library object, and this module goes away.
        module.__dict__["_lsg_schemas"] = library
    # The import system returns what sys.modules holds when this module's body ends.
    sys.modules[NAME] = module
    if spec.loader is not None:
        spec.loader.exec_module(module)


hand_over()
