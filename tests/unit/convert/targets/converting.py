"""A target with the core's conversion of one matrix, on every level at once."""

from dataclasses import dataclass
from typing import NamedTuple

from lsg import _core
from lsg.convert.targets import Target

ISAS = [isa.name.lower() for isa in _core.isa_levels()]


class Converted(NamedTuple):
    """The matrix in the target's format; the squared error and norm are None where nothing was changed."""

    matrix: _core.Matrix
    error: tuple[float, float] | None


def parts(matrix):
    """All of a matrix, to be compared."""
    arrays = (matrix.codes, matrix.scales, matrix.zero_points, matrix.bias, matrix.input_order)
    return [None if a is None else a.tobytes() for a in arrays] + [matrix.global_scale]


@dataclass(frozen=True)
class Converting:
    """What `--experts name` makes of a matrix."""

    target: Target

    def panel(self, source):
        return self.target.panel(source)

    def convert(self, matrix, source):
        """The same bytes on every level, or the assertion fails."""
        panel = self.panel(source)
        first, *others = (
            _core.convert_matrix(matrix, source, panel, search=self.target.search, isa=isa) for isa in ISAS
        )
        for other in others:
            assert (parts(other[0]), other[1]) == (parts(first[0]), first[1])
        return Converted(*first)


def make_target(name, *, search):
    return Converting(Target(name, search=search))
