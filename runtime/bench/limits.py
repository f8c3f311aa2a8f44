"""What the machine allows, measured beside every result, since a shared machine's speed drifts.

Invariant: a limit is what the chosen instruction-set level could reach, whether or not a kernel uses it.
"""

from dataclasses import dataclass
from typing import Final

from lsg._core import Instruction, Isa, ReadProbe, arithmetic_peak, instruction_isa

INT8: Final = (
    Instruction.MADDUBS_YMM,
    Instruction.MADDUBS_ZMM,
    Instruction.DPBUSD_ZMM,
    Instruction.TILE_INT8,
)
FLOAT: Final = (Instruction.FMA_YMM, Instruction.FMA_ZMM, Instruction.DPBF16_ZMM, Instruction.TILE_BF16)
_SECONDS: Final = 0.15


@dataclass(frozen=True)
class Limits:
    """bytes_per_s: memory read by all threads. peaks: operations/s of all threads, by instruction."""

    bytes_per_s: float
    peaks: dict[Instruction, float]

    def peak(self, instructions: tuple[Instruction, ...]) -> tuple[Instruction, float]:
        """The fastest of the instructions, with its operations/s."""
        found = max((name for name in instructions if name in self.peaks), key=lambda name: self.peaks[name])
        return found, self.peaks[found]


class Probe:
    """Measures limits again and again, on the same threads, cores and GiB of memory."""

    def __init__(self, threads: int, cores: list[int], isa: Isa) -> None:
        self._threads, self._cores, self._isa = threads, cores, isa
        self._memory = ReadProbe(threads, cores=cores)

    def measure(
        self, instructions: tuple[Instruction, ...] = INT8 + FLOAT, seconds: float = _SECONDS
    ) -> Limits:
        """Measure memory and those of the instructions that the level has, each for so long."""
        return Limits(
            self._memory.measure(seconds),
            {
                instruction: arithmetic_peak(instruction, self._threads, cores=self._cores, seconds=seconds)
                for instruction in instructions
                if instruction_isa(instruction).value <= self._isa.value
            },
        )


def steady(before: Limits, after: Limits) -> bool:
    """Whether the machine's speed was about the same at both times: no limit changed by more than a fifth."""
    pairs = [
        (before.bytes_per_s, after.bytes_per_s),
        *zip(before.peaks.values(), after.peaks.values(), strict=True),
    ]
    return all(max(pair) <= 1.2 * min(pair) for pair in pairs)


def best(before: Limits, after: Limits) -> Limits:
    """The higher of each limit: whatever else runs can only lower one."""
    return Limits(
        max(before.bytes_per_s, after.bytes_per_s),
        {name: max(before.peaks[name], after.peaks[name]) for name in before.peaks.keys() & after.peaks},
    )


def mean(before: Limits, after: Limits) -> Limits:
    """Between two measurements: what held while the work between them was done."""
    return Limits(
        (before.bytes_per_s + after.bytes_per_s) / 2,
        {name: (before.peaks[name] + after.peaks[name]) / 2 for name in before.peaks.keys() & after.peaks},
    )
