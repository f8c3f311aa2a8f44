"""`from checkpoints.hf import transformers`: the reference implementation, importable on any machine.

transformers imports torchvision, which beside a CPU build of torch only the server's stand-in can import.
"""

import importlib.util
import sys

from lsg.runtime.sglang.cpu_standins import DIRECTORY

if importlib.util.find_spec("torchvision") is not None:
    sys.path.insert(0, str(DIRECTORY))
    try:
        import torchvision  # noqa: F401
    finally:
        sys.path.remove(str(DIRECTORY))

import transformers

__all__ = ["transformers"]
