"""Unquantised matrices, BF16 or F16.

weight    [rows, columns]
"""

from collections.abc import Mapping
from typing import Any, Final

from lsg._core import Dtype
from lsg.convert.sources.encoding import Arrays, Decoded, Encoding, Parts, require_shape

_DTYPES: Final = {"BF16": Dtype.BF16, "F16": Dtype.F16}


def recognise(parts: Parts, rows: int, columns: int, _hints: Mapping[str, Any]) -> Encoding | None:
    """A 16-bit weight and nothing else."""
    if set(parts) != {"weight"} or parts["weight"].dtype not in _DTYPES:
        return None
    require_shape("weight", parts["weight"], (rows, columns))
    dtype = parts["weight"].dtype
    return Encoding(dtype.lower(), {"weight": dtype}, _decode, _DTYPES[dtype], as_stored="weight")


def _decode(arrays: Arrays) -> Decoded:
    return Decoded(arrays["weight"])
