"""Stand-ins for what sglang imports on a machine without a GPU, although only GPU builds of it are published.

This directory goes in front of PYTHONPATH, so that every process sglang spawns finds the stand-ins before its
first import; only `lsg-serve` does that, and only when no GPU is used. Each stand-in steps aside when the
real package loads.

* `sgl_kernel`: PyPI has CUDA builds alone. Without AMX, sglang calls one function of it on the CPU; the
  stand-in has it.
* `torchvision`: with a CPU build of torch, PyPI's torchvision cannot load its operators, and its own import
  then fails on the missing schema of `torchvision::nms`; the stand-in declares the schema and hands over to
  the real package.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
