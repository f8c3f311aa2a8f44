"""Every model that the converter is for, in every format that somebody publishes.

Invariant: a model is here once, under the name its publisher gives it.
"""

from collections.abc import Mapping
from typing import Final

from checkpoints.families.family import Family
from checkpoints.families.models.deepseek import DEEPSEEK
from checkpoints.families.models.glm import GLM
from checkpoints.families.models.others import OTHERS
from checkpoints.families.models.qwen import QWEN

MODELS: Final[Mapping[str, Family]] = {**QWEN, **GLM, **DEEPSEEK, **OTHERS}
