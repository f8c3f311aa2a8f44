"""The published formats: how the experts are encoded, how the rest is, and what config.json says of both.

Invariant: config.json is a hint that may be wrong, as it is in the repositories these imitate: ignore lists
name modules that are quantised and forget layers that are not. The tensors decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from checkpoints.families.integers import AutoAwq, Gptq, IntQuantized, PackQuantized
from checkpoints.families.matrices import Encoding, Fp8, Half, Mxfp4, Nvfp4


@dataclass(frozen=True)
class Format:
    """One kind of repository; `dense` is how attention and shared experts are stored."""

    experts: Encoding
    quantization: Mapping[str, Any] | None = None
    dense: Encoding = Half()  # noqa: RUF009 (frozen)
    # The last MoE layer and the drafts stay BF16, whatever the configuration says.
    mixed: bool = False


def _compressed(
    kind: str, weights: Mapping[str, Any], ignore: tuple[str, ...] = ("lm_head",)
) -> dict[str, Any]:
    scheme = {"actorder": None, "dynamic": False, "observer": "mse", "symmetric": True} | dict(weights)
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None, "format": kind}
        },
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def _int(bits: int, group: int, **more: Any) -> dict[str, Any]:
    grouped = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int"} | grouped | more


def _fp8(block: int, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head", "gate", "e_score_correction_bias"],
    } | more


def _modelopt(algorithm: str) -> dict[str, Any]:
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "producer": {"name": "modelopt", "version": "0.41.0"},
        "exclude_modules": ["lm_head", "*.mlp.gate", "*.self_attn*"],
    } | ({"group_size": 16} if algorithm != "FP8" else {})


def _gptq(encoding: Gptq) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": encoding.group,
        "desc_act": encoding.desc_act,
        "sym": encoding.symmetric,
        "checkpoint_format": "gptq" if encoding.version == 1 else "gptq_v2",
        "lm_head": False,
    }


# Lists a linear attention and an expert that are quantised all the same, and none of the layers that are not.
_LYING_IGNORE: Final = (
    "lm_head",
    "re:.*mlp.gate$",
    "re:.*linear_attn.*",
    "re:.*layers\\.0\\..*experts\\.1\\.down_proj$",
)
_E8M0: Final = torch.float8_e8m0fnu
_BLOCK_FP8: Final = Fp8((128, 128))
_V4_DENSE: Final = Fp8((128, 128), scale="scale", scale_dtype=_E8M0)
_V41_DENSE: Final = replace(_V4_DENSE, block=(32, 32))
_V4_CONFIG: Final = _fp8(128, scale_fmt="ue8m0")
_CHANNEL_FP8: Final = Fp8((1, 0), scale="weight_scale", scale_dtype=torch.bfloat16)
_SCALAR_FP8: Final = Fp8((0, 0), scale="weight_scale", single=())
_INT4: Final = PackQuantized()
_GPTQ: Final = Gptq()
_GPTQ_V2: Final = Gptq(version=2, symmetric=False)
_GPTQ_ACT: Final = Gptq(desc_act=True)
_GPTQ_V2_ACT: Final = replace(_GPTQ_V2, desc_act=True)
_FLOAT8: Final = {"num_bits": 8, "type": "float"}
_FLOAT4: Final = {"num_bits": 4, "type": "float"}

FORMATS: Final[Mapping[str, Format]] = {
    "bf16": Format(Half()),
    "fp16": Format(Half(torch.float16), dense=Half(torch.float16)),
    "fp8-block": Format(_BLOCK_FP8, _fp8(128), dense=_BLOCK_FP8),
    "fp8-block-fused": Format(_BLOCK_FP8, _fp8(128), dense=_BLOCK_FP8),
    "fp8-block-bf16-scales": Format(
        replace(_BLOCK_FP8, scale_dtype=torch.bfloat16), _fp8(128), dense=_BLOCK_FP8
    ),
    "fp8-block-ue8m0": Format(
        replace(_BLOCK_FP8, power_of_two=True), _fp8(128, scale_fmt="ue8m0"), dense=_BLOCK_FP8
    ),
    "fp8-v4-base": Format(replace(_BLOCK_FP8, scale="scale"), _V4_CONFIG, dense=_V4_DENSE),
    "fp8-v4.1-base": Format(_V41_DENSE, _fp8(32, scale_fmt="ue8m0"), dense=_V41_DENSE),
    "fp8-channel": Format(
        _CHANNEL_FP8,
        _compressed("float-quantized", _FLOAT8 | {"strategy": "channel"}),
        dense=_CHANNEL_FP8,
    ),
    "fp8-tensor": Format(_SCALAR_FP8, _modelopt("FP8"), dense=_SCALAR_FP8),
    "fp8-tensor-fused": Format(
        Fp8((0, 0), fused=True),
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    ),
    "fp8-tensor-ct": Format(
        replace(_SCALAR_FP8, single=(1,), scale_dtype=torch.bfloat16),
        _compressed("float-quantized", _FLOAT8 | {"strategy": "tensor"}),
    ),
    "mxfp8": Format(
        Fp8((1, 32), scale="weight_scale", scale_dtype=_E8M0),
        {"quant_method": "mxfp8", "weight_block_size": [1, 32], "activation_scheme": "dynamic"},
    ),
    "int4-g32": Format(_INT4, _compressed("pack-quantized", _int(4, 32), _LYING_IGNORE), dense=_INT4),
    "int4-g32-mixed": Format(
        _INT4, _compressed("pack-quantized", _int(4, 32), _LYING_IGNORE), dense=_INT4, mixed=True
    ),
    "int4-g32-asym-mixed": Format(
        PackQuantized(symmetric=False),
        _compressed("pack-quantized", _int(4, 32, symmetric=False), _LYING_IGNORE),
        dense=PackQuantized(symmetric=False),
        mixed=True,
    ),
    "int4-g32-native": Format(
        PackQuantized(shape_dtype=torch.int32),
        _compressed(
            "pack-quantized",
            _int(4, 32, observer="minmax"),
            (
                "lm_head",
                "re:.*self_attn.*",
                "re:.*shared_experts.*",
                "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            ),
        ),
    ),
    "int4-g128": Format(
        PackQuantized(group=128, scale_dtype=torch.float16), _compressed("pack-quantized", _int(4, 128))
    ),
    "int4-g128-g-idx": Format(
        PackQuantized(group=128, g_idx=True),
        _compressed("pack-quantized", _int(4, 128, actorder="group")),
    ),
    "int8-g32-asym-g-idx": Format(
        PackQuantized(bits=8, symmetric=False, g_idx=True),
        _compressed("pack-quantized", _int(8, 32, symmetric=False, actorder="group")),
    ),
    "int8-channel": Format(PackQuantized(bits=8, group=0), _compressed("pack-quantized", _int(8, 0))),
    "int8-g32": Format(PackQuantized(bits=8), _compressed("pack-quantized", _int(8, 32))),
    "int8-w8a8": Format(IntQuantized(), _compressed("int-quantized", _int(8, 0))),
    "awq": Format(
        AutoAwq(),
        {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "modules_to_not_convert": ["mlp.gate", "lm_head"],
        },
    ),
    "gptq": Format(_GPTQ, _gptq(_GPTQ)),
    "gptq-v2-asym": Format(_GPTQ_V2, _gptq(_GPTQ_V2)),
    "gptq-desc-act": Format(_GPTQ_ACT, _gptq(_GPTQ_ACT)),
    "gptq-v2-asym-desc-act": Format(_GPTQ_V2_ACT, _gptq(_GPTQ_V2_ACT)),
    "mxfp4-v4": Format(Mxfp4(), _V4_CONFIG, dense=_V4_DENSE),
    "mxfp4-v4.1": Format(Mxfp4(), _fp8(32, scale_fmt="ue8m0"), dense=_V41_DENSE),
    "mxfp4-ct": Format(
        Mxfp4("weight_packed", "weight_scale", torch.uint8, torch.uint8),
        _compressed("mxfp4-pack-quantized", _FLOAT4 | {"strategy": "group", "group_size": 32}),
    ),
    "mxfp4-gpt-oss": Format(
        Mxfp4("blocks", "scales", torch.uint8, torch.uint8),
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    ),
    "nvfp4": Format(Nvfp4(), _modelopt("NVFP4"), dense=_SCALAR_FP8),
    "nvfp4-ct": Format(
        Nvfp4(reciprocal=True),
        _compressed("nvfp4-pack-quantized", _FLOAT4 | {"strategy": "tensor_group", "group_size": 16}),
    ),
}
