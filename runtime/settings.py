"""Every environment variable that lsg obeys: the few LSG_* and the original system's LVLLM_* and LK_* names.

Invariant: this is the only module that parses them, and none is ignored. An unknown name, a bad value and a
feature that this version does not have are CompatErrors that say what would be right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from lsg import CompatError

PREFIXES: Final = ("LSG_", "LVLLM_", "LK_")
ACTIVATIONS: Final = ("int8", "float")
BINDINGS: Final = {"CPU_CORE": "core", "NUMA_NODE": "node"}
LOADS: Final = ("auto", "map", "huge")
HAND_OVERS: Final = ("hostfunc", "memops", "kernels")
ISAS: Final = ("scalar", "avx2", "avx512", "vnni", "bf16", "amx")
# LVLLM_MOE_USE_WEIGHT's values, and the lsg-convert option that makes such a directory.
WEIGHTS: Final = {"INT4": "int4", "TO_DTYPE": "bf16", "KEEP": "keep"}


@dataclass(frozen=True)
class Settings:
    """How the engine should run.

    isa: a level's name, empty for the highest the processor has. threads: workers of each serving process,
    None for the default. weights: the kind of experts the user expects in the directory (a value of WEIGHTS),
    None for any. bind: what a worker is pinned to, "core" or "node". power_saving: workers sleep as soon as
    they have nothing to do. load: how experts come into memory (load_plan.choose). spill: experts that do not
    fit on their node may lie on others. hand_over: how a CUDA graph and the engine take turns. trace: process
    n records what the engine computes in the file `trace`.n, None for nothing. json: what lsg-serve plans and
    how loading goes are JSON lines on stdout.
    """

    isa: str = ""
    threads: int | None = None
    activations: str = "int8"
    hybrid: bool = True
    weights: str | None = None
    bind: str = "core"
    power_saving: bool = False
    load: str = "auto"
    spill: bool = False
    hand_over: str = "kernels"
    trace: str | None = None
    json: bool = False

    def export(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment that makes `read` in a child process return these settings."""
        kept = {name: value for name, value in environ.items() if not name.startswith(PREFIXES)}
        if self.isa:
            kept["LSG_ISA"] = self.isa
        if self.threads is not None:
            kept["LSG_THREADS"] = str(self.threads)
        kept["LSG_ACTIVATIONS"] = self.activations
        if self.bind != "core":
            kept["LK_THREAD_BINDING"] = str(binding_name(self.bind))
        if self.power_saving:
            kept["LK_POWER_SAVING"] = "1"
        if self.load != "auto":
            kept["LSG_LOAD"] = self.load
        if self.spill:
            kept["LSG_SPILL"] = "1"
        kept["LSG_HAND_OVER"] = self.hand_over
        if self.trace is not None:
            kept["LSG_TRACE"] = self.trace
        if self.json:
            kept["LSG_JSON"] = "1"
        if not self.hybrid:
            kept["LVLLM_MOE_NUMA_ENABLED"] = "0"
        if self.weights is not None:
            kept["LVLLM_MOE_USE_WEIGHT"] = next(
                name for name, kind in WEIGHTS.items() if kind == self.weights
            )
        return kept


def binding_name(bind: str | None) -> str | None:
    """LK_THREAD_BINDING's word for what workers are pinned to."""
    return next((name for name, kind in BINDINGS.items() if kind == bind), None)


def _switch(name: str, value: str) -> bool:
    return {"0": False, "1": True}[_one_of(name, value, ("0", "1"))]


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        msg = f"{name}={value}: not a value of {name}; it takes one of {', '.join(valid)}"
        raise CompatError(msg)
    return value


def _interleave(name: str, value: str) -> str | None:
    """The original spreads pages so that its second copy of the model finds room; mapping makes no copy."""
    return "map" if value and _switch(name, value) else None


def _threads(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        msg = f"{name}={value}: not a number of threads; it takes a whole number from 1"
        raise CompatError(msg)
    return int(value)


def _path(name: str, value: str) -> str:
    if not value:
        msg = f"{name}: empty; it takes the path of a file to write, without the number of the process"
        raise CompatError(msg)
    return value


@dataclass(frozen=True)
class _Variable:
    """One accepted name: the field of Settings it sets, and how its value is read; None sets nothing."""

    field: str
    parse: Callable[[str, str], object]


_ACCEPTED: Final = {
    "LSG_ISA": _Variable("isa", lambda name, value: _one_of(name, value, ISAS)),
    "LSG_THREADS": _Variable("threads", _threads),
    "LSG_ACTIVATIONS": _Variable("activations", lambda name, value: _one_of(name, value, ACTIVATIONS)),
    "LSG_LOAD": _Variable("load", lambda name, value: _one_of(name, value, LOADS)),
    "LSG_SPILL": _Variable("spill", _switch),
    "LSG_HAND_OVER": _Variable("hand_over", lambda name, value: _one_of(name, value, HAND_OVERS)),
    "LSG_TRACE": _Variable("trace", _path),
    "LSG_JSON": _Variable("json", _switch),
    "LK_THREADS": _Variable("threads", _threads),
    "LK_THREAD_BINDING": _Variable(
        "bind", lambda name, value: BINDINGS[_one_of(name, value, tuple(BINDINGS))]
    ),
    "LK_POWER_SAVING": _Variable("power_saving", _switch),
    "LVLLM_ENABLE_NUMA_INTERLEAVE": _Variable("load", _interleave),
    "LK_NUMA_INTERLEAVE": _Variable("load", _interleave),
    "LVLLM_MOE_NUMA_ENABLED": _Variable("hybrid", _switch),
    "LK_MOE_HYBRID_ENABLED": _Variable("hybrid", _switch),
    "LVLLM_MOE_USE_WEIGHT": _Variable(
        "weights", lambda name, value: WEIGHTS[_one_of(name, value, tuple(WEIGHTS))]
    ),
}


@dataclass(frozen=True)
class _Later:
    """A feature of the original that this version lacks; `off` values ask for what it does anyway."""

    what: str
    option: str
    off: tuple[str, ...] = ("", "0")


_RESIDENT = _Later("keeping expert layers in GPU memory", "--resident-layers", off=("",))
_PREFILL = _Later("prefill of offloaded experts on the GPU", "--gpu-prefill-min-tokens")
_PREFETCH = _Later("prefill of offloaded experts on the GPU", "--gpu-prefetch-layers")
_LATER: Final = {
    "LVLLM_GPU_RESIDENT_MOE_LAYERS": _RESIDENT,
    "LK_GPU_RESIDENT_MOE_LAYERS": _RESIDENT,
    "LVLLM_GPU_PREFILL_MIN_BATCH_SIZE": _PREFILL,
    "LK_GPU_PREFILL_MIN_BATCH_SIZE": _PREFILL,
    "LVLLM_GPU_PREFETCH_WINDOW": _PREFETCH,
    "LK_GPU_PREFETCH_WINDOW": _PREFETCH,
}
LATER_OPTIONS: Final = {feature.option: feature.what for feature in _LATER.values()}


def later(given: str, what: str) -> CompatError:
    """The error for something the user asked for that a later version of lsg will do."""
    return CompatError(f"{given}: {what} comes in a later version of lsg; leave it out")


def read(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment. Raises CompatError for what it cannot obey."""
    found: dict[str, tuple[str, object]] = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIXES):
            continue
        if name in _LATER:
            feature = _LATER[name]
            if value not in feature.off:
                given = f"{name}={value}"
                raise later(given, feature.what)
            continue
        variable = _ACCEPTED.get(name)
        if variable is None:
            msg = f"{name}: no such setting; lsg knows {', '.join(sorted(_ACCEPTED | _LATER))}"
            raise CompatError(msg)
        parsed = variable.parse(name, value)
        if parsed is None:
            continue
        other, set_before = found.setdefault(variable.field, (name, parsed))
        if set_before != parsed:
            msg = f"{name}={value} contradicts {other}={environ[other]}; set only one of them"
            raise CompatError(msg)
    return replace(Settings(), **{field: parsed for field, (_, parsed) in found.items()})  # type: ignore[arg-type]
