"""The numbers in a tensor's bytes, by safetensors' names of their types.

Invariant: bits are looked at, not converted, so nothing that a float could round or a NaN could hide is lost.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lsg.convert.sources.encoding import Array

# The smallest bit pattern, sign apart, that is no number: infinity, or NaN where there is no infinity.
_NOT_FINITE: Final[dict[str, tuple[type[np.unsignedinteger], type[np.signedinteger], int]]] = {
    "F32": (np.uint32, np.int32, 0x7F800000),
    "BF16": (np.uint16, np.int16, 0x7F80),
    "F16": (np.uint16, np.int16, 0x7C00),
    "F8_E4M3": (np.uint8, np.int8, 0x7F),
    "F8_E5M2": (np.uint8, np.int8, 0x7C),
}
_VIEWS: Final = {"F32": np.float32, "BF16": np.uint16, "F16": np.uint16, "I32": np.uint32}


def is_finite(data: npt.NDArray[np.uint8], numbers: str) -> bool:
    """Whether none of the numbers is a NaN or an infinity."""
    if data.size == 0:
        return True
    if numbers == "F8_E8M0":
        return int(data.max()) != 0xFF
    if numbers not in _NOT_FINITE:
        return True
    unsigned, signed, limit = _NOT_FINITE[numbers]
    # Two passes without a temporary: the largest positive number, then the most negative one.
    sign = int(np.iinfo(signed).max) + 1
    return int(data.view(signed).max()) < limit and int(data.view(unsigned).max()) < sign | limit


def view_of(data: npt.NDArray[np.uint8], numbers: str) -> Array:
    """Raw bits in items of the right width; F32 as floats."""
    return data.view(_VIEWS.get(numbers, np.uint8))


def to_float32(bits: Array, numbers: str) -> npt.NDArray[np.float32]:
    """What `view_of` gave for an F32, F16 or BF16 tensor, as floats; exact."""
    if numbers == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if numbers == "F16" else bits
