"""The real sgl_kernel where it loads; elsewhere the one function sglang calls on a CPU without AMX.

Any other name can be imported, since sglang imports many without calling them, and raises when called.
"""

import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch

NAME = "sgl_kernel"


def load_real() -> ModuleType | None:
    """Import the installed sgl_kernel in place of this module; None when there is none or it cannot load."""
    here = Path(__file__).resolve().parents[1]
    spec = PathFinder.find_spec(NAME, [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    stand_in = sys.modules[NAME]
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
            del sys.modules[name]
        sys.modules[NAME] = stand_in
        return None
    return module


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    max_context_len: int,
) -> None:
    """Write each request's new cache slots into its row: req_to_token[r, start:end] = next end - start slots.

    req_pool_indices, start_offset, end_offset: [requests]; req_to_token: [pool, max_context_len];
    out_cache_loc: the slots of all requests, one request after the other.
    """
    taken = 0
    rows = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in rows:
        slots = out_cache_loc[taken : taken + end - start]
        req_to_token[row, start:end] = slots.to(req_to_token.dtype)
        taken += end - start


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_args: object, **_kwargs: object) -> NoReturn:
        msg = f"sgl_kernel.{name}: this is lsg's stand-in for machines without a GPU; install sgl_kernel"
        raise NotImplementedError(msg)

    return absent


load_real()
