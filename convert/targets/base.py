"""What every target offers: one matrix of one expert in, the same matrix in the target's format out.

Invariant: a target is a pure function of the matrix, so the same checkpoint and options give the same bytes
in any order, on any number of threads and on any machine. A bias is never changed.
"""

from typing import NamedTuple, Protocol

from lsg._core import Matrix, PanelFormat


class Converted(NamedTuple):
    """A matrix in the target's format; the squared error and norm are None where it is the source's own."""

    matrix: Matrix
    error: tuple[float, float] | None


class Target(Protocol):
    """How the experts are stored."""

    def panel(self, source: PanelFormat) -> PanelFormat:
        """The format that a matrix of this source format gets. Raises CheckpointError if there is none."""

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Convert one matrix of that format. Raises CheckpointError for values that cannot be stored."""


class Conversion(Protocol):
    """A way to other numbers: a target for the sources whose bytes it does not keep."""

    panel: PanelFormat
    """The format without a bias."""

    def convert(self, matrix: Matrix, source: PanelFormat) -> Converted:
        """Convert one matrix whose numbers are all finite; the bias is carried over."""
