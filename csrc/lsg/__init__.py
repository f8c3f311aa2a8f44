"""lsg: big mixture-of-experts models on one server, at the speed of its memory.

The blob is the only interface between the rooms: `lsg.convert` writes it, `lsg.runtime` serves it, both
through `lsg._core` (C++) and `lsg.manifest`, and neither imports the other.
"""

from lsg._core import (
    CapacityError,
    CheckpointError,
    CompatError,
    FormatError,
    LsgError,
    UnsupportedIsaError,
    __version__,
)

__all__ = [
    "CapacityError",
    "CheckpointError",
    "CompatError",
    "FormatError",
    "LsgError",
    "UnsupportedIsaError",
    "__version__",
]
