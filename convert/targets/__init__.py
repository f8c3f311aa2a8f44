"""What becomes of an expert's matrices: one target per value of `--experts`.

    source   int4   int8   fp8    bf16   fp16   mxfp4  nvfp4  keep
    bf16     Q s    Q      Q      K      R      Q s    Q s    K
    fp16     Q s    Q      Q      R      K      Q s    Q s    K
    fp8      Q s    Q      K      R =    R =    Q s    Q s    K
    int8     Q s    K      -      R =    R =    Q s    Q s    K
    int4     K      -      -      R =    R =    -      -      K
    mxfp4    -      -      -      R =    R =    K      -      K
    nvfp4    -      -      -      R      R      -      K      K

    K  kept: the source's own codes, scales, zero points, of any group size; lossless, no error to report
    R  widened or rounded to 16 bits: each value once, to nearest even, from its exact product; the error is
       reported. `=`: exact (error 0) when the scales are powers of two (for fp16, inside its range)
    Q  quantised, the error is reported; `s`: scales are searched for the least squared error (--search)
    -  refused before anything is written, naming `--experts keep` and `--experts bf16`

fp8 sources are e4m3 or e5m2; fp4 sources with e8m0 scales are mxfp4, others nvfp4.

`lsg.convert.targets.pairs` holds this table as data, and a test compares the two. Formats: int4 groups of 32
with bf16 scales; int8 likewise; fp8 e4m3 in blocks of 128 × 128 with f32 powers of two; mxfp4, nvfp4 as
published. A NaN or infinity anywhere is refused, as is a number beyond the target's range.

Invariant: a target is a pure function of the matrix; biases pass through untouched.
"""

from typing import Final

from lsg._core import Dtype, Matrix, PanelFormat
from lsg.convert.targets.base import Conversion, Converted, Target
from lsg.convert.targets.fp4 import Mxfp4, Nvfp4
from lsg.convert.targets.fp8 import Fp8
from lsg.convert.targets.half import Half
from lsg.convert.targets.int4 import Int4
from lsg.convert.targets.int8 import Int8
from lsg.convert.targets.pairs import NAMES, Way, way
from lsg.convert.targets.quantize import Quantized
from lsg.convert.targets.values import require_finite

__all__ = ["NAMES", "SEARCHING", "Converted", "Target", "make_target"]

# Targets whose bytes --search shapes.
SEARCHING: Final = frozenset({"int4", "mxfp4", "nvfp4"})


class _PairTarget:
    """A target that does with each source format what the table says."""

    def __init__(self, name: str, conversion: Conversion | None) -> None:
        self._name = name
        self._conversion = conversion

    def panel(self, source: PanelFormat) -> PanelFormat:
        if self._conversion is None or way(source, self._name) == Way.KEPT:
            return source
        panel = self._conversion.panel
        return PanelFormat(
            panel.dtype,
            panel.scale_dtype,
            scale_rows=panel.scale_rows,
            scale_k=panel.scale_k,
            bias=source.bias,
            global_scale=panel.global_scale,
            k_permutation=source.k_permutation,
        )

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        require_finite(matrix, source)
        if self._conversion is None or way(source, self._name) == Way.KEPT:
            return Converted(matrix, None)
        return self._conversion.convert(matrix, source)


def make_target(name: str, *, search: bool) -> Target:
    """The target that `--experts name` means."""
    return _PairTarget(name, _conversion(name, search=search))


def _conversion(name: str, *, search: bool) -> Conversion | None:
    match name:
        case "keep":
            return None
        case "int4":
            return Int4(search=search)
        case "int8":
            return Quantized(Int8())
        case "fp8":
            return Quantized(Fp8())
        case "mxfp4":
            return Quantized(Mxfp4(search=search))
        case "nvfp4":
            return Quantized(Nvfp4(search=search))
        case _:
            return Half({"bf16": Dtype.BF16, "fp16": Dtype.F16}[name])
