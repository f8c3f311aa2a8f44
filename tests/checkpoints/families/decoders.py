"""Reads a module's tensors back: with library code, or element by element where there is no library.

Invariant: shares nothing with the encoders but the names of tensors, so that a mistake in one shows.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from checkpoints.hf import transformers  # noqa: F401 (it finds torchvision; those below import it themselves)

# isort: split
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from checkpoints.families.matrices import F64, Encoding, Tensors


def decode(encoding: Encoding, tensors: Tensors) -> F64:
    """The matrix [N, K] that these tensors stand for."""
    return _DECODERS[encoding.decoder](tensors, encoding)


def _half(tensors: Tensors, encoding: Encoding) -> F64:
    return tensors["weight"].double().numpy()


def _fp8(tensors: Tensors, encoding: Encoding) -> F64:
    weight = tensors["weight"].double()
    name = next(name for name in ("weight_scale_inv", "weight_scale", "scale") if name in tensors)
    scale = tensors[name]
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    if scale.ndim < 2:
        return (weight * scale.double()).numpy()
    rows, cols = (
        side if blocks == 1 else edge
        for side, blocks, edge in zip(weight.shape, scale.shape, _block(encoding), strict=True)
    )
    full = scale.double().repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return (weight * full[: weight.shape[0], : weight.shape[1]]).numpy()


def _block(encoding: Encoding) -> tuple[int, int]:
    rows, cols = encoding.block
    return rows or 1 << 30, cols or 1 << 30


def decode_gpt_oss(blocks: torch.Tensor, scales: torch.Tensor) -> F64:
    """A fused parameter of gpt-oss, [E, rows, K], by the code that loads it."""
    turned = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return turned.transpose(1, 2).double().numpy()


def _fp4(packed: torch.Tensor) -> torch.Tensor:
    rows, pairs = packed.shape
    return unpack_fp4_from_uint8(packed.view(torch.uint8), rows, 2 * pairs, dtype=torch.float32).double()


def _mxfp4(tensors: Tensors, encoding: Encoding) -> F64:
    codes, scale = (tensors[name] for name in (encoding.weight, encoding.scale))
    scale = scale.view(torch.uint8).to(torch.int64)
    return torch.ldexp(_fp4(codes), (scale - 127).repeat_interleave(32, 1)).numpy()


def _nvfp4(tensors: Tensors, encoding: Encoding) -> F64:
    packed = tensors.get("weight_packed", tensors.get("weight"))
    value = _fp4(packed) * tensors["weight_scale"].double().repeat_interleave(16, 1)
    if "weight_global_scale" in tensors:
        return (value / tensors["weight_global_scale"].double()).numpy()
    return (value * tensors["weight_scale_2"].double()).numpy()


def _pack_quantized(tensors: Tensors, encoding: Encoding) -> F64:
    rows, cols = tensors["weight_shape"].tolist()
    bits = encoding.bits
    scale = tensors["weight_scale"].double()
    codes = unpack_from_int32(tensors["weight_packed"], bits, torch.Size((rows, cols)))
    zeros = None
    if "weight_zero_point" in tensors:
        shape = torch.Size((rows, scale.shape[1]))
        zeros = unpack_from_int32(tensors["weight_zero_point"], bits, shape, packed_dim=0)
    symmetric = zeros is None
    channel = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="channel")
    if "weight_g_idx" in tensors:
        # The library knows an order of inputs no more; each group is a matrix with a scale a row.
        value = torch.empty(rows, cols, dtype=torch.float64)
        for group in range(scale.shape[1]):
            of_group = tensors["weight_g_idx"] == group
            zero = None if zeros is None else zeros[:, group, None]
            value[:, of_group] = dequantize(
                codes[:, of_group], scale[:, group, None], zero, channel, dtype=torch.float64
            )
        return value.numpy()
    args = channel
    if encoding.group:
        args = QuantizationArgs(
            num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=encoding.group
        )
    return dequantize(codes, scale, zeros, args, dtype=torch.float64).numpy()


def _int_quantized(tensors: Tensors, encoding: Encoding) -> F64:
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    return dequantize(
        tensors["weight"], tensors["weight_scale"].double(), None, args, dtype=torch.float64
    ).numpy()


def _nibble(word: int, position: int) -> int:
    return (word >> (4 * position)) & 15


# Where column j of eight lies in its word: the inverse, as AutoAWQ's unpacking states it.
_AWQ_UNPACK: Final = (0, 4, 1, 5, 2, 6, 3, 7)


def _awq(tensors: Tensors, encoding: Encoding) -> F64:
    scales = tensors["scales"].double().numpy()
    group = tensors["qweight"].shape[0] // scales.shape[0]

    def unpack(words: torch.Tensor) -> F64:
        out = np.empty((words.shape[0], 8 * words.shape[1]))
        unsigned = words.numpy().astype(np.int64)
        for column in range(out.shape[1]):
            out[:, column] = _nibble(unsigned[:, column // 8], _AWQ_UNPACK[column % 8])
        return out

    codes, zeros = unpack(tensors["qweight"]), unpack(tensors["qzeros"])
    value = np.empty_like(codes)
    for k in range(len(codes)):
        value[k] = (codes[k] - zeros[k // group]) * scales[k // group]
    return value.T


def _gptq(tensors: Tensors, encoding: Encoding) -> F64:
    scales = tensors["scales"].double().numpy()
    words, zero_words = (tensors[name].numpy().astype(np.int64) for name in ("qweight", "qzeros"))
    value = np.empty((8 * words.shape[0], words.shape[1]))
    columns = np.arange(words.shape[1])
    for k, group in enumerate(tensors["g_idx"].tolist()):
        zero = _nibble(zero_words[group, columns // 8], columns % 8) + (1 if encoding.version == 1 else 0)
        value[k] = (_nibble(words[k // 8], k % 8) - zero) * scales[group]
    return value.T


_DECODERS: Final[dict[str, Callable[[Tensors, Encoding], F64]]] = {
    "half": _half,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "pack-quantized": _pack_quantized,
    "int-quantized": _int_quantized,
    "awq": _awq,
    "gptq": _gptq,
}
