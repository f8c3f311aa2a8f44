"""The process's one engine: maps a model's layer files and computes their routed experts on torch tensors.

Invariant: a process has at most one, since its workers own their cores. Tensors cross into the core as
addresses, so each one's device, dtype, shape and contiguity is checked here first; lsg links no torch.
"""

import logging
from collections.abc import Callable
from typing import Final

import torch

from lsg import CompatError, LsgError, _core
from lsg.runtime import console, placement
from lsg.runtime.hand_over import HandOver
from lsg.runtime.host import Host
from lsg.runtime.load import Layer, load_layers
from lsg.runtime.load_plan import rooms_of
from lsg.runtime.model import RepackedModel
from lsg.runtime.settings import Settings

logger = logging.getLogger(__name__)

DTYPES: Final = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# How long a worker without work spins before it sleeps: the next layer's work comes sooner than that.
SPIN_US: Final = 50
# Beside a GPU the next layer comes after its attention: waking workers costs 13 µs a layer on an H200 host.
SPIN_BESIDE_GPU_US: Final = 1000


def spin_us(settings: Settings) -> int:
    """How long this machine's workers spin before they sleep."""
    if settings.power_saving:
        return 0
    return SPIN_BESIDE_GPU_US if torch.cuda.is_available() else SPIN_US


class ExpertEngine:
    """A model's routed experts, or one tensor-parallel rank's slice of them."""

    def __init__(
        self,
        model: RepackedModel,
        settings: Settings,
        host: Host,
        *,
        process: int = 0,
        processes: int = 1,
        replicas: int = 1,
    ) -> None:
        self.model = model
        self._settings = settings
        self._host = host
        self._process = process
        self.placement = placement.plan(
            host,
            threads=settings.threads,
            process=process,
            processes=processes,
            replicas=replicas,
            bind=settings.bind,
        )
        self._staging: dict[torch.device, _Staging] = {}
        self._hand_over: HandOver | None = None
        self._core = _core.Engine(
            nodes=self.placement.workers,
            isa=settings.isa,
            activations=settings.activations,
            spin_us=spin_us(settings),
        )
        if settings.trace is not None:
            self._core.trace_to(f"{settings.trace}.{process}")
        logger.info(
            "lsg: process %d of %d, threads: %s; %s, %s activations",
            process + 1,
            processes,
            placement.describe(self.placement),
            self._core.isa.name.lower(),
            settings.activations,
        )

    def load(self, indices: list[int], *, rank: int = 0, ranks: int = 1) -> dict[int, int]:
        """Load the layers with these transformer indices; returns each one's handle for `forward`."""
        as_json = self._settings.json
        # Bars of several processes would overwrite each other.
        with console.LoadProgress(
            _say, bars=self._process == 0, json_process=self._process if as_json else None
        ) as progress:
            loaded = load_layers(
                self._core,
                [self._layer(index, rank, ranks) for index in indices],
                mode=self._settings.load,
                spill=self._settings.spill,
                rooms=rooms_of(self._host.topology),
                left_bytes=self._host.memory_available_bytes,
                say=_say,
                progress=progress,
            )
        if as_json:
            console.event("loaded", process=self._process, **loaded.facts())
        return dict(zip(indices, loaded.handles, strict=True))

    def _layer(self, index: int, rank: int, ranks: int) -> Layer:
        layer = self.model.layer(index)
        units = -(-layer.intermediate_size // layer.unit_rows)
        begin, end = placement.unit_range(units, rank, ranks)
        return Layer(
            self.model.path_of(layer),
            layer.activation,
            self.placement.memory(begin, end),
            self.placement.node_units(end - begin),
        )

    def allow_graphs(self, on_failure: Callable[[str], None]) -> None:
        """Let `forward` be captured in CUDA graphs of the current device.

        on_failure: called in a thread of its own with what went wrong in a computation that a graph asked
        for; its GPU is kept waiting for two seconds and then gets NaN.
        """
        bound = self.placement.caller_works and self._settings.bind == "core"
        if self._hand_over is not None:
            return
        self._hand_over = HandOver(
            self._core,
            self._settings.hand_over,
            hidden_size=max(layer.hidden_size for layer in self.model.manifest.layers),
            top_k=self.model.manifest.top_k,
            # Where the caller is a worker, its core is left for it.
            core=self.placement.cpus[0] if bound else -1,
            on_failure=on_failure,
        )
        logger.info("lsg: CUDA graphs by %s", self._settings.hand_over)

    def forward(
        self, handle: int, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Routed experts' output [tokens, H], in hidden's dtype and on its device.

        hidden: [tokens, H]; topk_ids, topk_weights: [tokens, top_k], negative ids = no expert. On a GPU the
        tensors travel through pinned buffers, and the current stream is waited for, unless it is capturing.
        """
        if hidden.dtype not in DTYPES:
            msg = f"hidden states are {hidden.dtype}, but experts compute in {', '.join(DTYPES.values())}"
            raise CompatError(msg)
        if (
            hidden.ndim != 2
            or topk_ids.shape != topk_weights.shape
            or hidden.shape[:1] != topk_ids.shape[:-1]
        ):
            msg = (
                f"hidden {list(hidden.shape)}, topk_ids {list(topk_ids.shape)}, topk_weights "
                f"{list(topk_weights.shape)}; expected [tokens, H] and twice [tokens, top_k]"
            )
            raise LsgError(msg)
        if hidden.shape[0] == 0:
            return torch.empty_like(hidden)
        topk_ids = topk_ids.to(torch.int32)
        topk_weights = topk_weights.to(torch.float32)
        if hidden.device.type == "cpu":
            out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
            self._run(handle, hidden.contiguous(), topk_ids.contiguous(), topk_weights.contiguous(), out)
            return out
        if self._hand_over is not None:
            if torch.cuda.is_current_stream_capturing():
                return self._hand_over.submit(
                    handle,
                    DTYPES[hidden.dtype],
                    hidden.contiguous(),
                    topk_ids.contiguous(),
                    topk_weights.contiguous(),
                )
            self._hand_over.reserve(hidden.shape[0], hidden.shape[1], topk_ids.shape[1])
        staging = self._staging.setdefault(hidden.device, _Staging())
        host_out = staging.fetch(hidden, topk_ids, topk_weights)
        self._run(handle, *staging.inputs, host_out)
        return staging.send(host_out, hidden.device)

    def _run(
        self,
        handle: int,
        hidden: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        tokens, top_k = topk_ids.shape
        self._core.forward(
            handle,
            hidden.data_ptr(),
            topk_ids.data_ptr(),
            topk_weights.data_ptr(),
            out.data_ptr(),
            tokens=tokens,
            top_k=top_k,
            dtype=DTYPES[hidden.dtype],
        )


def _say(line: str) -> None:
    logger.info("lsg: %s", line)


class _Staging:
    """Pinned host buffers of one GPU, grown to the largest batch seen."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._sent = torch.cuda.Event()
        self.inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def fetch(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Copy the inputs to the host, wait for them, and return the buffer for the output."""
        # The previous output may still be on its way when the caller changed streams.
        self._sent.synchronize()
        self.inputs = (
            self._view("hidden", hidden).copy_(hidden, non_blocking=True),
            self._view("ids", ids).copy_(ids, non_blocking=True),
            self._view("weights", weights).copy_(weights, non_blocking=True),
        )
        out = self._view("out", hidden)
        torch.cuda.current_stream(hidden.device).synchronize()
        return out

    def send(self, out: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Start the copy of the output to the GPU."""
        result = out.to(device, non_blocking=True)
        self._sent.record(torch.cuda.current_stream(device))
        return result

    def _view(self, name: str, like: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get((name, like.dtype))
        if buffer is None or buffer.numel() < like.numel():
            buffer = torch.empty(like.numel(), dtype=like.dtype, pin_memory=True)
            self._buffers[name, like.dtype] = buffer
        return buffer[: like.numel()].view(like.shape)


_engine: ExpertEngine | None = None


def process_engine(
    model: RepackedModel, settings: Settings, host: Host, *, process: int, processes: int, replicas: int
) -> ExpertEngine:
    """The process's engine, made on first use. Raises CompatError when another model has it.

    process: which of `processes` on this machine, of all `replicas` that each hold the whole model.
    """
    global _engine
    if _engine is None:
        _engine = ExpertEngine(model, settings, host, process=process, processes=processes, replicas=replicas)
    elif _engine.model != model:
        msg = f"{model.directory}: this process already computes the experts of {_engine.model.directory}"
        raise CompatError(msg)
    return _engine
