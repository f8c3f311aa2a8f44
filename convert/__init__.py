"""lsg.convert: a checkpoint in, a repacked model directory out.

Invariant: nothing here is imported by, or imports, `lsg.runtime`; the
directory that this room writes is all they share.
"""
