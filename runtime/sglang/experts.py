"""Routed experts that sglang does not hold: a FusedMoE method without parameters, computed by the engine.

Invariant: a model that has been loaded through an Offload has this method in every FusedMoE layer with routed
experts, and each agrees with the manifest in geometry, routing and activation; anything else is a
CompatError.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.topk import TopKOutputChecker
from sglang.srt.layers.moe.utils import get_moe_runner_backend
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase

from lsg import CompatError
from lsg.manifest import ActivationSpec
from lsg.runtime import host, settings
from lsg.runtime.engine import ExpertEngine, process_engine
from lsg.runtime.launch import EXPERT_PARALLEL
from lsg.runtime.load_plan import shared
from lsg.runtime.model import RepackedModel, open_model

# On a CPU sglang pads the intermediate size to a multiple of this for every rank, for its own kernels.
CPU_PADDING: Final = 32
# Values of --moe-runner-backend, as sglang resolved it, under which a GPU's layers route, pad and scale as
# these experts do. The last leaves routing to the kernel; sglang insists on it for MXFP8 models.
PLAIN_RUNNERS: Final = ("auto", "triton", "flashinfer_trtllm")


class Offload:
    """One model being loaded; stands in for its FusedMoE layers' quantisation config.

    resident: a draft model whose experts are in the safetensors, for sglang to load like any other's.
    """

    def __init__(self, directory: Path, runner: Any) -> None:
        self.settings = settings.read(os.environ)
        self.model = open_model(directory)
        self.model.check_settings(self.settings)
        # sglang gives a draft's only layer the number 0, whatever it is in the checkpoint.
        drafts = [layer.index for layer in self.model.draft_layers] if runner.is_draft_worker else []
        self._draft: int | None = drafts[runner.draft_model_idx or 0] if drafts else None
        self.resident: bool = runner.is_draft_worker and not drafts
        arguments = runner.server_args
        # Attention's data parallelism divides the processes of one run, and every layer's experts with them.
        self._replicas: int = 1 if arguments.enable_dp_attention else arguments.dp_size
        self.settings = replace(self.settings, load=shared(self.settings.load, self._replicas))
        self._on_cpu: bool = arguments.device == "cpu"
        self._nodes: int = arguments.nnodes
        self._stages: int = arguments.pp_size
        # On a CPU too, sglang numbers a machine's processes by the GPUs they would have.
        self._gpu: int = (runner.gpu_id - arguments.base_gpu_id) // arguments.gpu_id_step
        self._methods: list[OffloadedExperts] = []

    def get_name(self) -> str:
        """Name of the quantisation, as sglang asks for it."""
        return "lsg"

    def get_quant_method(self, layer: FusedMoE, _prefix: str) -> "OffloadedExperts":
        """The method of one layer."""
        index = layer.layer_id if self._draft is None else self._draft
        method = OffloadedExperts(self.model, layer, index, on_cpu=self._on_cpu)
        self._methods.append(method)
        return method

    def finish(self, model: torch.nn.Module) -> None:
        """Check that no layer was missed, then map the layers. Raises CompatError."""
        for name, layer in model.named_modules():
            routed = isinstance(layer, FusedMoE) and not getattr(layer, "is_shared_fused_moe", False)
            if routed and not isinstance(layer.quant_method, OffloadedExperts):
                msg = (
                    f"{self.model.directory}: sglang would compute the experts of {name} itself, with "
                    f"{type(layer.quant_method).__name__} and no weights; is another plugin active?"
                )
                raise CompatError(msg)
        if not self._methods and self._stages > 1:
            return
        if not self._methods:
            msg = f"{self.model.directory}: sglang built this model without a single layer of routed experts"
            raise CompatError(msg)
        world = torch.distributed.get_world_size() // self._nodes
        replica = self._gpu // world if self._replicas > 1 else 0
        engine = process_engine(
            self.model,
            self.settings,
            host.observe(),
            process=replica * world + torch.distributed.get_rank() % world,
            processes=world * self._replicas,
            replicas=self._replicas,
        )
        first = self._methods[0]
        handles = engine.load(
            [method.layer_id for method in self._methods], rank=first.tp_rank, ranks=first.tp_size
        )
        if not self._on_cpu:
            engine.allow_graphs(_die)
        for method in self._methods:
            method.attach(engine, handles[method.layer_id])


def _die(message: str) -> None:
    """End this process as sglang ends one that cannot go on: the launcher hears of it and stops all."""
    sys.stderr.write(f"lsg: {message}\n")
    sys.stderr.flush()
    os.kill(os.getppid(), signal.SIGQUIT)
    os._exit(1)


class OffloadedExperts(FusedMoEMethodBase):  # type: ignore[misc]
    """The method of one FusedMoE layer."""

    def __init__(self, model: RepackedModel, layer: FusedMoE, index: int, *, on_cpu: bool) -> None:
        self.layer_id = index
        self.tp_rank: int = layer.moe_tp_rank
        self.tp_size: int = layer.moe_tp_size
        self._where = f"{model.directory}: layer {self.layer_id}"
        self._manifest = model.manifest
        self._entry = model.layer(self.layer_id)
        self._padding = CPU_PADDING * self.tp_size if on_cpu else 1
        self._engine: ExpertEngine | None = None
        self._handle = -1
        self._scale = 1.0
        if layer.moe_ep_size > 1:
            raise CompatError(EXPERT_PARALLEL.format(where=self._where))
        runner = get_moe_runner_backend().value
        if not on_cpu and runner not in PLAIN_RUNNERS:
            msg = f"{self._where}: no routing for {runner}'s kernels; choose --moe-runner-backend triton"
            raise CompatError(msg)
        if layer.num_fused_shared_experts:
            msg = f"{self._where}: shared experts among the routed ones; add --disable-shared-experts-fusion"
            raise CompatError(msg)

    def attach(self, engine: ExpertEngine, handle: int) -> None:
        """Tell the method where its experts are."""
        self._engine, self._handle = engine, handle

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **_extra_weight_attrs: object,
    ) -> None:
        """Create none; check that sglang's idea of the layer is the manifest's. Raises CompatError."""
        self._expect("num_experts", num_experts, self._entry.num_experts)
        self._expect("hidden_size", hidden_size, self._entry.hidden_size)
        found, expected = intermediate_size_per_partition * self.tp_size, self._entry.intermediate_size
        if found != -(-expected // self._padding) * self._padding:
            self._expect("intermediate_size", found, expected)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: Any) -> None:
        """Check what the layer wants computed. Raises CompatError."""
        self._expect("top_k", moe_runner_config.top_k, self._manifest.top_k)
        self._expect("is_gated", moe_runner_config.is_gated, self._entry.gated)
        self._expect("activation", str(activation_of(moe_runner_config)), str(self._entry.activation))
        for option in ("apply_router_weight_on_input", "no_combine"):
            if getattr(moe_runner_config, option):
                msg = f"{self._where}: sglang asks for {option}, which lsg's experts cannot do"
                raise CompatError(msg)
        self._scale = moe_runner_config.routed_scaling_factor or 1.0

    def apply(self, layer: torch.nn.Module, dispatch_output: Any) -> Any:
        """The layer's routed experts, or this rank's partial sum, which the model's own block all-reduces."""
        hidden = dispatch_output.hidden_states
        topk = dispatch_output.topk_output
        if TopKOutputChecker.format_is_bypassed(topk):
            topk = topk.to_standard(layer_id=self.layer_id)
        if not TopKOutputChecker.format_is_standard(topk):
            msg = f"{self._where}: routing comes as {type(topk).__name__}; choose --moe-runner-backend triton"
            raise CompatError(msg)
        if self._engine is None:
            msg = f"{self._where}: asked to compute before its experts were mapped"
            raise CompatError(msg)
        out = self._engine.forward(self._handle, hidden, topk.topk_ids, topk.topk_weights)
        if hidden.is_cuda and self._scale != 1.0:
            # Only on a GPU do sglang's own runners scale the sum; on a CPU the model's code does it.
            out.mul_(self._scale)
        return StandardCombineInput(hidden_states=out)

    def _expect(self, name: str, found: object, expected: object) -> None:
        if found != expected:
            msg = (
                f"{self._where}: sglang builds it with {name} = {found}, the manifest says {expected}; "
                "config.json and experts/ are not from the same conversion"
            )
            raise CompatError(msg)


def activation_of(config: Any) -> ActivationSpec:
    """A MoeRunnerConfig's activation in the manifest's words. Raises CompatError."""
    limit = config.gemm1_clamp_limit
    if config.activation == "situ":
        alpha = 4.0 if config.gemm1_alpha is None else config.gemm1_alpha
        return ActivationSpec(kind="situ", alpha=alpha, limit=limit or 0.0)
    if config.activation == "silu" and config.gemm1_alpha is not None:
        either = limit or config.swiglu_limit or 0.0
        return ActivationSpec(kind="swigluoai", alpha=config.gemm1_alpha, limit=either)
    # The two limits are two functions: sglang applies this one after silu, the other before.
    if config.activation == "silu" and limit is not None:
        return ActivationSpec(kind="silu_clamped", alpha=1.0, limit=limit)
    if config.activation == "silu" and config.swiglu_limit is not None:
        return ActivationSpec(kind="swiglu_clamped", alpha=1.0, limit=config.swiglu_limit)
    if config.activation == "silu":
        return ActivationSpec(kind="silu", alpha=1.0, limit=0.0)
    if config.activation == "gelu":
        return ActivationSpec(kind="gelu_tanh", alpha=1.0, limit=0.0)
    if config.activation == "relu2" and not config.is_gated:
        return ActivationSpec(kind="relu2", alpha=1.0, limit=0.0)
    msg = f"sglang asks for the activation {config.activation!r}, which lsg's experts do not have"
    raise CompatError(msg)
