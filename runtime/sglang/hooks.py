"""The ledger: every place where lsg reaches into sglang, with the reason and when it can go.

Invariant: each target and the names used of it are pinned in compat.py and were found in the release at hand
before a hook is registered; what a hook cannot do is a SystemExit, because sglang would go on without it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lsg import LsgError
from lsg.runtime.model import is_repacked

if TYPE_CHECKING:
    from lsg.runtime.sglang.experts import Offload


@dataclass(frozen=True)
class Hook:
    """One AROUND hook."""

    target: str
    function: Callable[..., Any]
    why: str
    checked: str
    until: str


_offload: "Offload | None" = None


@contextmanager
def _fatal() -> Iterator[None]:
    """Turn lsg's errors into the exit of this process: one sentence on stderr, exit code 1."""
    try:
        yield
    except LsgError as error:
        msg = f"lsg: {error}"
        raise SystemExit(msg) from error


def around_load_model(original: Callable[..., Any], runner: Any) -> Any:
    """Offload the routed experts of the model being loaded, when its directory is a repacked one."""
    global _offload
    directory = Path(runner.model_config.model_path)
    if not is_repacked(directory):
        return original(runner)
    # Imported for a repacked directory only: it imports sglang's layers.
    from lsg.runtime.sglang.experts import Offload

    with _fatal():
        offload = Offload(directory, runner)
    if offload.resident:
        return original(runner)
    if runner.server_args.device == "cpu":
        # No hook: sglang's registry of attention backends is open to everybody.
        from lsg.runtime.sglang import cpu_attention

        cpu_attention.register()
    _offload = offload
    try:
        result = original(runner)
    finally:
        _offload = None
    with _fatal():
        offload.finish(runner.model)
    return result


def around_fused_moe_init(original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> None:
    """Give the layer our method instead of the one its quantisation config would choose."""
    if _offload is None or getattr(layer, "is_shared_fused_moe", False):
        original(layer, *args, **kwargs)
        return
    bound = inspect.signature(original).bind(layer, *args, **kwargs)
    bound.arguments["quant_config"] = _offload
    # sglang 0.5.23 lets a model pass the method itself.
    bound.arguments.pop("quant_method", None)
    with _fatal():
        original(*bound.args, **bound.kwargs)


LEDGER: Final = (
    Hook(
        target="sglang.srt.model_executor.model_runner.ModelRunner.load_model",
        function=around_load_model,
        why="tells which directory a model comes from, and afterwards every layer can be checked",
        checked="0.5.15, 0.5.17, 0.5.18, 0.5.23",
        until="sglang tells a plugin which model is being loaded",
    ),
    Hook(
        target="sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE.__init__",
        function=around_fused_moe_init,
        why="the experts' method is chosen here, before it allocates their parameters",
        checked="0.5.15, 0.5.17, 0.5.18, 0.5.23",
        until="sglang lets a plugin provide the method of FusedMoE layers",
    ),
)


def install() -> None:
    """Register the ledger with sglang, which applies it when all plugins have run."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in LEDGER:
        HookRegistry.register(hook.target, hook.function, HookType.AROUND)
