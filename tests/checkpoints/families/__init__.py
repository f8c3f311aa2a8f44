"""Tiny checkpoints of every model family in every published format, and what their experts are worth.

`CASES` lists them; `make` writes one and returns what a converter must find in it. The generators draw codes
and scales first and know the weights exactly; `decoders` reads the tensors back with other people's code, so
that a mistake in an encoder cannot pass for one of the converter's. `verify` checks what a converter wrote.
"""

from typing import Final

from checkpoints.families.expected import Expected
from checkpoints.families.formats import FORMATS
from checkpoints.families.models import MODELS
from checkpoints.families.write import make

__all__ = ["CASES", "FORMATS", "MODELS", "Expected", "make"]

# (model, format)
CASES: Final = tuple((model, name) for model, family in MODELS.items() for name in family.formats)
