"""Small integers out of 32-bit words and bytes, and what the formats that pack them have in common.

Invariant: a word's first code is in its lowest bits; where a format orders them differently, `order` says so.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lsg import CheckpointError
from lsg._core import Dtype
from lsg.convert.sources.encoding import (
    SCALE_DTYPES,
    Arrays,
    Decoded,
    Encoding,
    Parts,
    require_shape,
)

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Dtypes = Mapping[str, Collection[str]]
"""The dtypes, by safetensors' names, that each part may have."""

SCALES: Final = ("F32", "F16", "BF16")


def has_parts(parts: Parts, required: Dtypes, optional: Dtypes | None = None) -> bool:
    """Whether the parts are the required ones, with or without the optional, all of the right dtypes."""
    dtypes = {**required, **(optional or {})}
    if not required.keys() <= parts.keys() <= dtypes.keys():
        return False
    return all(part.dtype in dtypes[name] for name, part in parts.items())


def require_shapes(parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the parts that are there have these shapes."""
    for name, shape in shapes.items():
        if name in parts:
            require_shape(name, parts[name], shape)


def integers(
    name: str,
    bits: int,
    parts: Parts,
    decode: Callable[[Arrays], Decoded],
    *,
    scale: str,
    group: int,
    zero_point: bool,
    ordered: bool = False,
) -> Encoding:
    """The encoding of integers of 4 or 8 bits with one of the part `scale`'s scales for `group` inputs."""
    return Encoding(
        f"{name}_int{bits}",
        {part: found.dtype for part, found in parts.items()},
        decode,
        Dtype.INT4 if bits == 4 else Dtype.INT8,
        SCALE_DTYPES[parts[scale].dtype],
        block_columns=group,
        zero_point=zero_point,
        ordered=ordered,
    )


def unpack_nibbles(packed: Bytes) -> Bytes:
    """[rows, n] bytes to [rows, 2n] codes, each byte's low half first."""
    # One 16-bit lane per byte: two shifts and a mask that numpy vectorises, in place.
    lanes = packed.astype(np.uint16)
    lanes |= lanes << 4
    lanes &= 0x0F0F
    return lanes.view(np.uint8)


def unpack_columns(words: Words, bits: int, columns: int) -> Bytes:
    """[rows, words] to codes [rows, columns]: a word holds neighbours of one row."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    codes = unpack_nibbles(packed) if bits == 4 else packed
    return codes[:, :columns]


def unpack_rows(words: Words, bits: int, rows: int, order: Sequence[int] | None = None) -> Bytes:
    """[words, columns] to codes [rows, columns]: a word holds neighbours of one column.

    order: where in the word's run of rows its codes belong, lowest bits first.
    """
    per_word = 32 // bits
    words = np.ascontiguousarray(words)
    codes = np.empty((words.shape[0], per_word, words.shape[1]), np.uint8)
    for position, place in enumerate(order or range(per_word)):
        codes[:, place] = words >> np.uint32(bits * position)
    # Storing a word in a byte has cut off all above it; one pass over bytes cuts off the rest.
    codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1])[:rows]


def words_for(count: int, bits: int) -> int:
    """How many words hold `count` codes."""
    return -(-count * bits // 32)


def order_of(groups: npt.NDArray[np.uint32], group: int) -> npt.NDArray[np.uint32] | None:
    """The inputs sorted by their group, a group's in their order; None if they are (group 0: there is one).

    Raises CheckpointError unless every group but the last has `group` inputs.
    """
    expected = np.arange(len(groups)) // (group or len(groups))
    if (groups == expected).all():
        return None
    order = np.argsort(groups, kind="stable").astype(np.uint32)
    if (groups[order] != expected).any():
        msg = (
            f"the group index does not give {group or len(groups)} inputs to every group but the last, as "
            "quantisers do; the file is damaged, download it again"
        )
        raise CheckpointError(msg)
    return order
