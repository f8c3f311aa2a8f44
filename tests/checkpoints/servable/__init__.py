"""Checkpoints that can be served: families of `checkpoints.families` that sglang and transformers both know.

`MODELS` lists them; `make` writes one in a published format and returns transformers' model of exactly its
weights. Experts come from the generators of `checkpoints.families`, everything else from the model's own
class, under the published names.
"""

from checkpoints.servable.make import make
from checkpoints.servable.models import MODELS, Servable

__all__ = ["MODELS", "Servable", "make"]
