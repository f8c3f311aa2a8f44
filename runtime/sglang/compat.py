"""What lsg needs of sglang, pinned, and the check that a release still has it.

Invariant: the check reads sglang's source without importing it, so that the same code checks the installed
release when a server starts and any unpacked wheel in tests/compat.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from lsg import CompatError

OLDEST: Final = (0, 5, 15)
NEWEST: Final = (0, 5, 23)

_MOE: Final = "srt/layers/moe"


@dataclass(frozen=True)
class Pin:
    """A function or class in a source file, and names it must have.

    names: a function's parameters, all of them in this order with `exact`; a class's fields, or attributes
    that its methods set on self.
    """

    file: str
    path: str
    names: tuple[str, ...]
    why: str
    exact: bool = False


PINS: Final = (
    Pin(
        "srt/plugins/hook_registry.py", "HookRegistry.register", ("target", "hook", "hook_type"), "adds hooks"
    ),
    Pin("srt/plugins/hook_registry.py", "HookType", ("AROUND",), "the kind of hook used"),
    Pin(
        "srt/model_executor/model_runner.py",
        "ModelRunner.load_model",
        ("self",),
        "hooked: one model",
        exact=True,
    ),
    Pin(
        "srt/model_executor/model_runner.py",
        "ModelRunner",
        ("model", "model_config", "server_args", "is_draft_worker", "draft_model_idx", "gpu_id"),
        "read around load_model",
    ),
    Pin("srt/configs/model_config.py", "ModelConfig", ("model_path",), "which directory is loaded"),
    Pin(
        f"{_MOE}/fused_moe_triton/layer.py",
        "FusedMoE.__init__",
        ("self", "num_experts", "hidden_size", "intermediate_size", "layer_id", "top_k", "quant_config"),
        "hooked: one layer's routed experts",
    ),
    Pin(
        f"{_MOE}/fused_moe_triton/layer.py",
        "FusedMoE",
        (
            "quant_method",
            "layer_id",
            "num_fused_shared_experts",
            "moe_ep_size",
            "moe_tp_rank",
            "moe_tp_size",
        ),
        "which slice of which layer this is",
    ),
    Pin(
        "srt/layers/quantization/base_config.py",
        "FusedMoEMethodBase.create_weights",
        ("self", "layer", "num_experts", "hidden_size", "intermediate_size_per_partition", "params_dtype"),
        "implemented",
    ),
    Pin(
        "srt/layers/quantization/base_config.py",
        "FusedMoEMethodBase.create_moe_runner",
        ("self", "layer", "moe_runner_config"),
        "implemented",
        exact=True,
    ),
    Pin(
        "srt/layers/quantization/base_config.py",
        "FusedMoEMethodBase.apply",
        ("self", "layer", "dispatch_output"),
        "implemented",
        exact=True,
    ),
    Pin(
        f"{_MOE}/moe_runner/base.py",
        "MoeRunnerConfig",
        (
            "activation",
            "is_gated",
            "top_k",
            "apply_router_weight_on_input",
            "no_combine",
            "routed_scaling_factor",
            "gemm1_alpha",
            "gemm1_clamp_limit",
            "swiglu_limit",
        ),
        "what the experts must compute",
    ),
    Pin(
        f"{_MOE}/token_dispatcher/standard.py",
        "StandardDispatchOutput",
        ("hidden_states", "topk_output"),
        "input of apply",
    ),
    Pin(
        f"{_MOE}/token_dispatcher/standard.py", "StandardCombineInput", ("hidden_states",), "output of apply"
    ),
    Pin(
        "srt/layers/attention/attention_registry.py",
        "register_attention_backend",
        ("name",),
        "adds attention for a CPU",
        exact=True,
    ),
    Pin(
        "srt/layers/attention/base_attn_backend.py",
        "AttentionBackend.forward",
        ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "overridden: attention for a CPU",
        exact=True,
    ),
    *(
        Pin(
            "srt/layers/attention/torch_native_backend.py",
            f"TorchNativeAttnBackend._run_sdpa_forward_{phase}",
            ("query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices", "seq_lens", *more),
            "overridden: attention for a CPU",
        )
        for phase, more in (("extend", ("extend_seq_lens", "causal")), ("decode", ("is_cross_attn",)))
    ),
    Pin(
        f"{_MOE}/utils.py", "get_moe_runner_backend", (), "whose routing the layers are built for", exact=True
    ),
    Pin(f"{_MOE}/topk.py", "StandardTopKOutput", ("topk_weights", "topk_ids"), "routing"),
    Pin(
        f"{_MOE}/topk.py", "BypassedTopKOutput.to_standard", ("self", "layer_id"), "routing not yet computed"
    ),
    Pin(f"{_MOE}/topk.py", "TopKOutputChecker.format_is_standard", ("topk_output",), "tells routing formats"),
    Pin(f"{_MOE}/topk.py", "TopKOutputChecker.format_is_bypassed", ("topk_output",), "tells routing formats"),
)


def installed_root() -> Path:
    """The installed sglang package's directory. Raises CompatError."""
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        msg = f"sglang is not installed; install sglang {_dotted(OLDEST)} to {_dotted(NEWEST)}"
        raise CompatError(msg)
    return Path(spec.submodule_search_locations[0])


def version(root: Path) -> str:
    """The release in this directory. Raises CompatError."""
    path = root / "_version.py"
    found = re.search(r"^__version__ = .*'([^']+)'", path.read_text() if path.is_file() else "", re.MULTILINE)
    if found is None:
        msg = f"{root}: not a release of sglang; install one from {_dotted(OLDEST)} to {_dotted(NEWEST)}"
        raise CompatError(msg)
    return found[1]


def check(root: Path) -> None:
    """Raise CompatError unless the sglang in `root` is a supported release that has everything pinned."""
    found = version(root)
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not OLDEST <= release <= NEWEST:
        msg = (
            f"sglang {found} is installed, but lsg was checked against {_dotted(OLDEST)} to {_dotted(NEWEST)}"
        )
        raise CompatError(msg)
    for pin in PINS:
        problem = _problem(root / pin.file, pin)
        if problem is not None:
            msg = (
                f"sglang {found} does not fit this version of lsg: {problem} ({pin.file}; needed: {pin.why})"
            )
            raise CompatError(msg)


def _problem(file: Path, pin: Pin) -> str | None:
    if not file.is_file():
        return "the file is gone"
    node: ast.AST | None = _parse(file)
    for name in pin.path.split("."):
        node = _member(node, name) if node is not None else None
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        found = [
            argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        ]
        if pin.exact and found != list(pin.names):
            return f"{pin.path} takes ({', '.join(found)}), expected ({', '.join(pin.names)})"
    elif isinstance(node, ast.ClassDef):
        found = _attributes(node)
    else:
        return f"{pin.path} is gone"
    missing = [name for name in pin.names if name not in found]
    return f"{pin.path} has no {', '.join(missing)}" if missing else None


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _member(node: ast.AST, name: str) -> ast.AST | None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    body = getattr(node, "body", [])
    return next((child for child in body if isinstance(child, kinds) and child.name == name), None)


def _attributes(node: ast.ClassDef) -> list[str]:
    """Fields and class variables, and what methods assign to self."""
    targets: list[ast.expr] = []
    for child in ast.walk(node):
        if isinstance(child, ast.Assign):
            targets.extend(child.targets)
        elif isinstance(child, ast.AnnAssign):
            targets.append(child.target)
    names = []
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(part, ast.Name):
                names.append(part.id)
            elif isinstance(part, ast.Attribute) and getattr(part.value, "id", None) == "self":
                names.append(part.attr)
    return names


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
