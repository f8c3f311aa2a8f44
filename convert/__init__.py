"""lsg.convert: a checkpoint in, a repacked model directory out.

Invariant: nothing here is imported by, or imports, `lsg.runtime`; the
directory that this room writes is all they share.
"""

import os

# Read when numpy is loaded: its BLAS, which has no work here, would begin a thread a core, each to spin for a
# while: on two cores a quarter of the command's start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
