"""Integer encodings, packed into int32 words: compressed-tensors, AutoAWQ, GPTQ.

Invariant: as in `checkpoints.families.matrices`: codes, zero points and scales are drawn, the value follows.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from checkpoints.families.matrices import Drawn, Encoding, Fp8, random_scales, spread, typed

Codes = npt.NDArray[np.uint32]
# Word c of a row holds output columns 8c + AWQ_ORDER[i] at bits 4i.
AWQ_ORDER: Final = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def pack_words(codes: Codes, bits: int) -> torch.Tensor:
    """Along the last axis, first code in the lowest bits; the last word is padded with zeros."""
    per_word = 32 // bits
    padding = -codes.shape[1] % per_word
    lanes = np.pad(codes, ((0, 0), (0, padding))).reshape(codes.shape[0], -1, per_word).astype(np.uint32)
    words = np.bitwise_or.reduce(lanes << (bits * np.arange(per_word, dtype=np.uint32)), axis=2)
    return typed(words.astype(np.uint32), torch.int32)


def pack_rows(codes: Codes, bits: int) -> torch.Tensor:
    """Along the first axis."""
    return pack_words(np.ascontiguousarray(codes.T), bits).T.contiguous()


def group_index(cols: int, group: int, expert: int) -> npt.NDArray[np.int64]:
    """The group of each input, as a quantiser gives them that sorts inputs by activation.

    An expert's gate and up see the same activations, so they have one order.
    """
    shuffled = np.random.default_rng([cols, expert]).permutation(cols)
    return (np.arange(cols) // group)[shuffled]


def _scale_size(bits: int, cols: int) -> float:
    return 3 / (2**bits * cols**0.5)


@dataclass(frozen=True)
class PackQuantized:
    """compressed-tensors `pack-quantized`: codes along the input, zero points along the output."""

    bits: int = 4
    group: int = 32
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16
    # Activation order "group": the columns keep their places, `weight_g_idx` says whose group they are in.
    g_idx: bool = False
    expert: int = 0
    shape_dtype: torch.dtype = torch.int64
    decoder: str = "pack-quantized"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`weight_packed`, `weight_scale`, `weight_shape`; maybe `weight_zero_point`, `weight_g_idx`."""
        group = self.group or cols
        shape = (rows, -(-cols // group))
        codes = rng.integers(0, 2**self.bits, (rows, cols)).astype(np.uint32)
        scales = random_scales(rng, shape, _scale_size(self.bits, cols), self.scale_dtype, power_of_two=False)
        half = 2 ** (self.bits - 1)
        zeros = (
            np.full(shape, half, np.uint32)
            if self.symmetric
            else rng.integers(0, 2**self.bits, shape).astype(np.uint32)
        )
        tensors = {
            "weight_packed": pack_words(codes, self.bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor([rows, cols], dtype=self.shape_dtype),
        }
        column_group = np.arange(cols) // group
        if self.g_idx:
            column_group = group_index(cols, group, self.expert)
            tensors["weight_g_idx"] = torch.from_numpy(column_group.astype(np.int32))
        if not self.symmetric:
            tensors["weight_zero_point"] = pack_rows(zeros, self.bits)
        value = (codes.astype(np.float64) - zeros[:, column_group]) * scales.double().numpy()[:, column_group]
        return Drawn(tensors, value)


@dataclass(frozen=True)
class IntQuantized:
    """compressed-tensors `int-quantized`: plain int8 with a scale per output, as in W8A8 repositories."""

    decoder: str = "int-quantized"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`weight` I8, `weight_scale`."""
        codes = rng.integers(-128, 128, (rows, cols)).astype(np.int8)
        scales = random_scales(rng, (rows, 1), _scale_size(8, cols), torch.bfloat16, power_of_two=False)
        value = codes * scales.double().numpy()
        return Drawn({"weight": torch.from_numpy(codes), "weight_scale": scales}, value)


@dataclass(frozen=True)
class AutoAwq:
    """AutoAWQ GEMM: [K, N] codes, packed along the output in the kernel's order; zero points likewise."""

    group: int = 128
    decoder: str = "awq"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`qweight`, `qzeros`, `scales`."""
        codes = rng.integers(0, 16, (cols, rows)).astype(np.uint32)
        zeros = rng.integers(0, 16, (cols // self.group, rows)).astype(np.uint32)
        scales = random_scales(rng, zeros.shape, _scale_size(4, cols), torch.float16, power_of_two=False)
        value = (codes - spread(zeros.astype(np.float64), (self.group, 1), cols, rows)) * spread(
            scales.double().numpy(), (self.group, 1), cols, rows
        )

        def pack(values: Codes) -> torch.Tensor:
            ordered = values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(values.shape)
            return pack_words(ordered, 4)

        tensors = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}
        return Drawn(tensors, np.ascontiguousarray(value.T))


@dataclass(frozen=True)
class Gptq:
    """GPTQ: [K, N] codes packed along the input; version 1 stores zero points less one."""

    group: int = 128
    version: int = 1
    symmetric: bool = True
    desc_act: bool = False
    expert: int = 0
    decoder: str = "gptq"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`qweight`, `qzeros`, `scales`, `g_idx`."""
        codes = rng.integers(0, 16, (cols, rows)).astype(np.uint32)
        shape = (-(-cols // self.group), rows)
        # Version 1 cannot store a zero point of 0.
        zeros = (
            np.full(shape, 8, np.uint32) if self.symmetric else rng.integers(1, 16, shape).astype(np.uint32)
        )
        scales = random_scales(rng, shape, _scale_size(4, cols), torch.float16, power_of_two=False)
        g_idx = np.arange(cols) // self.group
        if self.desc_act:
            g_idx = group_index(cols, self.group, self.expert)
        value = (codes - zeros[g_idx].astype(np.float64)) * scales.double().numpy()[g_idx]
        stored_zeros = zeros - 1 if self.version == 1 else zeros
        tensors = {
            "qweight": pack_rows(codes, 4),
            "qzeros": pack_words(stored_zeros, 4),
            "scales": scales,
            "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
        }
        return Drawn(tensors, np.ascontiguousarray(value.T))


def of_expert(encoding: Encoding, expert: int) -> Encoding:
    """The encoding as one of a layer's experts has it: what gate and up share is the expert's own."""
    return replace(encoding, expert=expert) if isinstance(encoding, PackQuantized | Gptq | Fp8) else encoding
