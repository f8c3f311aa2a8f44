"""`from checkpoints.hf import transformers`: the reference implementation, importable on any machine.

PyPI's torchvision is built for CUDA torch; beside a CPU torch its operators do not load, and importing it (as
transformers does) fails on the fake kernels of two operators that were never declared. Nobody here calls
them, so declaring them is enough. Where torchvision imports, or is not installed, nothing is touched.
"""

import importlib.util

import torch

_declared = torch.library.Library("torchvision", "FRAGMENT")
if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for _name in ("nms", "qnms"):
            _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402

__all__ = ["transformers"]
