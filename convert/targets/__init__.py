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

fp8 sources are e4m3 or e5m2; fp4 sources with e8m0 scales are mxfp4, others nvfp4. A NaN or infinity anywhere
is refused, as is a number beyond the target's range.

`lsg.convert.targets.pairs` holds this table as data, and a test compares the two; `panels` says what each
target's format is and why. The core does the work (`lsg._core.convert_expert`): it needs to know no more than
the source's format and the target's.

Invariant: what an expert becomes depends on its matrices and the target alone, so the same checkpoint and
options give the same bytes in any order, on any number of threads and on any machine. A bias and an
order of inputs are never changed.
"""

from dataclasses import dataclass
from typing import Final

from lsg._core import PanelFormat
from lsg.convert.targets.pairs import NAMES, Way, way
from lsg.convert.targets.panels import PANELS

__all__ = ["NAMES", "SEARCHING", "Target"]

# Targets whose bytes --search shapes.
SEARCHING: Final = frozenset({"int4", "mxfp4", "nvfp4"})


@dataclass(frozen=True)
class Target:
    """What `--experts name` means; search: choose scales for the least squared error."""

    name: str
    search: bool

    def panel(self, source: PanelFormat) -> PanelFormat:
        """The format that a matrix of this source format gets. Raises CheckpointError if there is none."""
        if way(source, self.name) == Way.KEPT:
            return source
        panel = PANELS[self.name]
        return PanelFormat(
            panel.dtype,
            panel.scale_dtype,
            scale_rows=panel.scale_rows,
            scale_k=panel.scale_k,
            bias=source.bias,
            global_scale=panel.global_scale,
            k_permutation=source.k_permutation,
        )
