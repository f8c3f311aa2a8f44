"""How sglang is started: its command line and environment, from directory, machine and the user's arguments.

Invariant: pure. The user's own arguments come last and unchanged; what is added before them is what the
machine demands (a CPU without sglang's GPU path) or what offloaded experts demand, and the user's word
against it is an error.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsg import CapacityError, CompatError
from lsg.runtime import placement
from lsg.runtime.host import Host
from lsg.runtime.model import RepackedModel, resident_bytes
from lsg.runtime.settings import Settings
from lsg.runtime.sglang.cpu_standins import DIRECTORY as CPU_STANDINS

PLUGIN = "lsg"
MODEL_OPTIONS = ("--model-path", "--model")
TP_OPTIONS = ("--tensor-parallel-size", "--tp-size", "--tp")
PP_OPTIONS = ("--pipeline-parallel-size", "--pp-size")
DP_OPTIONS = ("--data-parallel-size", "--dp-size")
EP_OPTIONS = ("--expert-parallel-size", "--ep-size", "--ep")
NNODES_OPTIONS = ("--nnodes",)
SLEEP_OPTION = "--sleep-on-idle"
# Without --max-total-tokens sglang fills the memory it finds free with KV cache, and touches every page of it
# before it serves. On a CPU that memory holds the experts, and the touching took 3.6 s per GB.
CPU_KV_CACHE_BYTES = 4 << 30
# What sglang's processes take beside weights and KV cache: torch alone is half of it, in every one of them.
SGLANG_BYTES = 3 << 30
# A batch between two captured sizes is padded to the larger one, and a padded row's experts cost as much as
# any: sizes that a few users make are captured one by one.
DECODE_GRAPH_SIZES = (
    *range(1, 17), *range(20, 33, 4), *range(40, 65, 8), *range(80, 129, 16), *range(160, 257, 32),
)  # fmt: skip
DECODE_GRAPH_OPTIONS = (
    "--cuda-graph-bs",
    "--cuda-graph-bs-decode",
    "--cuda-graph-config",
    "--cuda-graph-max-bs",
    "--cuda-graph-max-bs-decode",
)
# Why experts are not spread over processes.
EXPERT_PARALLEL = (
    "{where}: no expert parallelism; lsg splits every expert between the processes of --tp-size, so that all "
    "of them read equally much whichever experts are chosen; leave --ep-size out"
)
RUNNER_OPTION = "--moe-runner-backend"
DRAFT_RUNNER_OPTION = "--speculative-moe-runner-backend"
PREFILL_GRAPH_OPTIONS = ("--cuda-graph-backend-prefill", "--enforce-piecewise-cuda-graph")


@dataclass(frozen=True)
class Launch:
    """A command to exec, and what was decided on the way. warning: why it may fail, or empty."""

    argv: list[str]
    environ: dict[str, str]
    threads: int
    where: str
    processes: int
    on_cpu: bool
    needed_bytes: int
    available_bytes: int
    warning: str


def option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The value of a `--name value` or `--name=value` argument; empty for a bare switch, None when absent."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            following = arguments[position + 1 : position + 2]
            found = value if equals else "".join(item for item in following if not item.startswith("--"))
    return found


def plan(
    directory: Path,
    model: RepackedModel | None,
    arguments: Sequence[str],
    settings: Settings,
    host: Host,
    gpus: int,
    environ: Mapping[str, str],
) -> Launch:
    """Decide everything; `model` is None for an ordinary directory. Raises CompatError and CapacityError."""
    if option(arguments, MODEL_OPTIONS) is not None:
        msg = f"the model is named twice: {directory} and {MODEL_OPTIONS[0]}; leave the option out"
        raise CompatError(msg)
    parallel = Parallel(1, 1, 1) if model is None else parallel_sizes(arguments)
    processes = parallel.processes
    on_cpu = option(arguments, ("--device",)) == "cpu" or (
        gpus == 0 and option(arguments, ("--device",)) is None
    )
    threads = settings.threads or host.default_threads(processes)
    child = dict(environ)
    added: list[str] = []
    needed = 0
    where = warning = ""
    if on_cpu:
        added += _cpu_arguments(arguments)
        child["SGLANG_USE_CPU_ENGINE"] = "1"
        child["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CPU_STANDINS), environ.get("PYTHONPATH")]))
    if not settings.hybrid:
        # The plugin then installs nothing, in whatever process.
        child = settings.export(child)
    if model is not None:
        _check_parallel(directory, arguments)
        placed = [
            placement.plan(
                host,
                threads=threads,
                process=process,
                processes=processes,
                replicas=parallel.replicas,
                bind=settings.bind,
            )
            for process in range(processes)
        ]
        where = placement.describe(placed[0])
        needed = _check_memory(model, host, on_cpu=on_cpu)
        warning = _short_memory(needed, host)
        if on_cpu and option(arguments, ("--max-total-tokens", "--mem-fraction-static")) is None:
            added += ["--mem-fraction-static", f"{_kv_cache_fraction(host, needed):.3f}"]
        if not on_cpu:
            added += _gpu_arguments(arguments)
        elif processes > 1 and processes == parallel.tensor:
            # sglang knows only NUMA nodes to bind the processes of a tensor-parallel run to.
            cores = "|".join(",".join(map(str, one.cpus)) for one in placed)
            child.setdefault("SGLANG_CPU_OMP_THREADS_BIND", cores)
        if settings.power_saving and option(arguments, (SLEEP_OPTION,)) is None:
            # sglang's scheduler asks for requests without pause otherwise.
            added.append(SLEEP_OPTION)
        child = settings.export(child)
        child.setdefault("OMP_NUM_THREADS", str(_omp_threads(host, threads, processes, on_cpu=on_cpu)))
        plugins = child.get("SGLANG_PLUGINS", "")
        if plugins and PLUGIN not in plugins.split(","):
            child["SGLANG_PLUGINS"] = f"{plugins},{PLUGIN}"
    argv = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        MODEL_OPTIONS[0],
        str(directory),
        *added,
        *arguments,
    ]
    return Launch(
        argv, child, threads, where, processes, on_cpu, needed, host.memory_available_bytes, warning
    )


@dataclass(frozen=True)
class Parallel:
    """How sglang spreads over this machine: `processes`, in `replicas` that each hold the whole model."""

    processes: int
    replicas: int
    tensor: int


def parallel_sizes(arguments: Sequence[str]) -> Parallel:
    """What the user's arguments ask for. Raises CompatError."""
    tensor, stages, machines = (_size(arguments, names) for names in (TP_OPTIONS, PP_OPTIONS, NNODES_OPTIONS))
    # With this option sglang shares the requests out among the processes of one tensor-parallel run.
    within = option(arguments, ("--enable-dp-attention",)) is not None
    replicas = 1 if within else _size(arguments, DP_OPTIONS)
    return Parallel(max(1, tensor * stages // machines) * replicas, replicas, tensor)


def _size(arguments: Sequence[str], names: Sequence[str]) -> int:
    value = option(arguments, names) or "1"
    if not value.isdecimal() or int(value) == 0:
        msg = f"{names[0]} {value}: expected a whole number from 1"
        raise CompatError(msg)
    return int(value)


def _check_parallel(directory: Path, arguments: Sequence[str]) -> None:
    """Refuse what would fail in sglang's own processes, some of which then wait for ever."""
    if _size(arguments, EP_OPTIONS) > 1:
        raise CompatError(EXPERT_PARALLEL.format(where=directory))


def _cpu_arguments(arguments: Sequence[str]) -> list[str]:
    added = []
    if option(arguments, ("--device",)) is None:
        added += ["--device", "cpu"]
    if option(arguments, ("--attention-backend",)) is None:
        # Without AMX, or a build of sgl_kernel for it, sglang falls back to torch_native by itself; but when
        # asked for that, it refuses gpt-oss and gemma-4, which lsg's own torch_native can serve.
        added += ["--attention-backend", "intel_amx"]
    return added


def _gpu_arguments(arguments: Sequence[str]) -> list[str]:
    """What offloaded experts want of sglang on a GPU: decode in CUDA graphs, prefill without.

    A prefill's experts take milliseconds; a graph would save microseconds.
    """
    for name in PREFILL_GRAPH_OPTIONS:
        if option(arguments, (name,)) not in (None, "disabled"):
            msg = f"{name}: prefill of offloaded experts is not captured in CUDA graphs; leave it out"
            raise CompatError(msg)
    # Fused, a shared expert would be one of the routed ones; apart, the GPU computes it meanwhile.
    added = ["--disable-prefill-cuda-graph", "--disable-shared-experts-fusion"]
    if option(arguments, (RUNNER_OPTION,)) is None:
        # Of several forms of routing this runner's is the plain one; for gpt-oss, and for most models on
        # Blackwell, sglang chooses another.
        added += [RUNNER_OPTION, "triton"]
        drafts = option(arguments, ("--speculative-algorithm",)) is not None
        if drafts and option(arguments, (DRAFT_RUNNER_OPTION,)) is None:
            # A draft's experts may be sglang's own; they would inherit the model's choice.
            added += [DRAFT_RUNNER_OPTION, "auto"]
    if option(arguments, DECODE_GRAPH_OPTIONS) is None:
        added += ["--cuda-graph-bs-decode", *map(str, DECODE_GRAPH_SIZES)]
    return added


def _check_memory(model: RepackedModel, host: Host, *, on_cpu: bool) -> int:
    """Bytes of memory needed for weights on this machine. Raises CapacityError when there are not as many."""
    needed = model.expert_bytes + (resident_bytes(model.directory) if on_cpu else 0)
    if needed > host.memory_available_bytes:
        msg = (
            f"{model.directory}: needs {needed / 1e9:.1f} GB of memory for its weights, but "
            f"{host.memory_available_bytes / 1e9:.1f} GB are available; use a machine with more, or experts "
            "of fewer bits (lsg-convert --experts int4)"
        )
        raise CapacityError(msg)
    return needed


def _short_memory(needed: int, host: Host) -> str:
    """A warning when the weights fit, but leave sglang too little."""
    available = host.memory_available_bytes
    if available - needed >= SGLANG_BYTES:
        return ""
    return (
        f"memory is short: {available / 1e9:.1f} GB are available, but the weights need "
        f"{needed / 1e9:.1f} GB and sglang's own processes about {SGLANG_BYTES / 1e9:.1f} GB; end what uses "
        "memory, or use experts of fewer bits (lsg-convert --experts int4)"
    )


def _kv_cache_fraction(host: Host, needed: int) -> float:
    """Half of what the weights leave, up to CPU_KV_CACHE_BYTES, as a share of memory: sglang's unit."""
    available = max(1, host.memory_available_bytes)
    return max(0.01, min((available - needed) / 2, CPU_KV_CACHE_BYTES) / available)


def _omp_threads(host: Host, threads: int, processes: int, *, on_cpu: bool) -> int:
    """OpenMP threads of an sglang process: the engine's cores in turn with it, with a GPU the spare ones."""
    if on_cpu:
        return threads
    return max(1, (host.usable_cores - threads * processes) // processes)
