"""Small Hugging Face checkpoints with the real tensor names, made on the spot.

Tests import `checkpoints` (tests/conftest.py puts it on the path);
`python tests/checkpoints OUT` makes one by hand.
"""

from checkpoints.qwen3_moe import make_checkpoint

__all__ = ["make_checkpoint"]
