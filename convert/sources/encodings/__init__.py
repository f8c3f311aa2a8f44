"""The encodings that are known, one module each.

Invariant: names, dtypes and shapes of a matrix's parts decide; at most one recogniser knows a combination.
What only the configuration can tell (GPTQ's version, symmetry) comes as `hints`, its quantization_config.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from lsg.convert.sources.encoding import Encoding, Parts
from lsg.convert.sources.encodings import awq, compressed_int, fp4, fp8, gptq, half

Recogniser = Callable[[Parts, int, int, Mapping[str, Any]], Encoding | None]

RECOGNISERS: Final[tuple[Recogniser, ...]] = (
    half.recognise,
    fp8.recognise,
    compressed_int.recognise,
    awq.recognise,
    gptq.recognise,
    fp4.recognise_mxfp4,
    fp4.recognise_nvfp4,
)
KNOWN: Final = "BF16, F16, FP8, INT4 and INT8 of compressed-tensors, AWQ, GPTQ, MXFP4 and NVFP4"


def recognise(parts: Parts, rows: int, columns: int, hints: Mapping[str, Any]) -> Encoding | None:
    """The encoding of a matrix [rows, columns], None if it is not known. Raises CheckpointError."""
    found = (recogniser(parts, rows, columns, hints) for recogniser in RECOGNISERS)
    return next((encoding for encoding in found if encoding), None)


def output_features(parts: Parts) -> int | None:
    """How many rows the matrix has, whatever its encoding; None if the parts are strange."""
    if "qweight" in parts and "scales" in parts:
        # AWQ and GPTQ have inputs first; only the scales always count the outputs one by one.
        shape = parts["scales"].shape
        return shape[-1] if len(shape) == 2 else None
    weight = next((parts[name] for name in ("weight", "weight_packed", "blocks") if name in parts), None)
    return weight.shape[0] if weight and len(weight.shape) > 1 else None
