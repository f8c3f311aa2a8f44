"""Which limits can be measured, and what is said where they cannot."""

import math
import os

import pytest

from lsg import CapacityError, LsgError, UnsupportedIsaError, _core
from lsg._core import Instruction


@pytest.mark.parametrize("instruction", Instruction)
def test_an_instruction_is_measured_or_refused(instruction: Instruction):
    """On the levels that the processor lacks, the loop must not be tried: it would end the process."""
    if _core.instruction_isa(instruction) in _core.isa_levels():
        peak = _core.arithmetic_peak(instruction, 1, seconds=0.001)
        # Slower than one operation a cycle of the slowest clock, the loop would measure something else.
        assert math.isfinite(peak)
        assert peak > 1e9
    else:
        with pytest.raises(UnsupportedIsaError, match="is above what this processor has"):
            _core.arithmetic_peak(instruction, 1, seconds=0.001)


def test_threads_are_pinned():
    core = min(os.sched_getaffinity(0))
    assert _core.ReadProbe(2, gib=0.01, cores=[core]).measure(0.001) > 0
    assert _core.arithmetic_peak(Instruction.FMA_YMM, 2, seconds=0.001, cores=[core]) > 0
    for measure in (
        lambda cores: _core.ReadProbe(2, gib=0.01, cores=cores).measure(0.001),
        lambda cores: _core.arithmetic_peak(Instruction.FMA_YMM, 2, seconds=0.001, cores=cores),
    ):
        with pytest.raises(CapacityError, match="cannot be pinned to core 1000000"):
            measure([core, 1_000_000])


def test_no_threads_are_refused():
    with pytest.raises(LsgError, match="at least 1 thread"):
        _core.arithmetic_peak(Instruction.FMA_YMM, 0)
    with pytest.raises(LsgError, match="at least 1 thread"):
        _core.ReadProbe(0)
    with pytest.raises(LsgError, match="1 to 8 streams"):
        _core.ReadProbe(1, streams=9)
