"""One projection of one expert in every published encoding, drawn at random together with its exact value.

Invariant: codes and scales are drawn, never rounded to, so `value` is what the tensors mean, with no error at
all (except where `Encoding.rtol` says that readers may differ). The bits lie as in the published files;
`checkpoints.families.decoders` reads them back with other people's code.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Tensors = dict[str, torch.Tensor]
# Codes whose exponent and mantissa bits are all ones are NaN in e4m3fn; a checkpoint has none.
E4M3_LARGEST: Final = 0x7E


@dataclass(frozen=True)
class Drawn:
    """A matrix [N, K]: the tensors of its module, by the suffix of their names, and its value."""

    tensors: Tensors
    value: F64


class Encoding(Protocol):
    """A way to write a matrix; `decoder` names its independent reader."""

    @property
    def decoder(self) -> str: ...
    @property
    def rtol(self) -> float: ...
    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn: ...


def e4m3_value(codes: U8) -> F64:
    """OCP 8-bit float, 4 exponent and 3 mantissa bits, from its definition."""
    exponent, mantissa = (codes.astype(np.int64) >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where(codes & 0x80, -magnitude, magnitude)


def random_e4m3(rng: np.random.Generator, shape: tuple[int, ...]) -> U8:
    """Codes of finite values of both signs, the largest among them."""
    codes = rng.integers(0, 0x60, shape, np.uint8) | (rng.integers(0, 2, shape, np.uint8) << 7)
    codes.flat[0] = E4M3_LARGEST
    return codes


def typed(bits: npt.NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as another item type."""
    return torch.from_numpy(np.ascontiguousarray(bits)).view(dtype)


def random_scales(
    rng: np.random.Generator, shape: tuple[int, ...], size: float, dtype: torch.dtype, *, power_of_two: bool
) -> torch.Tensor:
    """Positive scales around `size`."""
    wanted = rng.uniform(0.5, 2.0, shape) * size
    if power_of_two or dtype == torch.float8_e8m0fnu:
        exponent = np.rint(np.log2(wanted))
        if dtype == torch.float8_e8m0fnu:
            return typed((exponent + 127).astype(np.uint8), dtype)
        wanted = 2.0**exponent
    return torch.from_numpy(wanted).to(dtype)


def spread(scales: F64, block: tuple[int, int], rows: int, cols: int) -> F64:
    """A value per block, repeated over the block."""
    return scales.repeat(block[0], axis=0)[:rows].repeat(block[1], axis=1)[:, :cols]


@dataclass(frozen=True)
class Half:
    """Plain BF16 or F16 numbers."""

    dtype: torch.dtype = torch.bfloat16
    decoder: str = "half"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`weight`."""
        weight = torch.from_numpy(rng.normal(size=(rows, cols)) / cols**0.5).to(self.dtype)
        return Drawn({"weight": weight}, weight.double().numpy())


@dataclass(frozen=True)
class Fp8:
    """e4m3 with a scale for every block of rows and columns; 0 is all of them."""

    block: tuple[int, int]
    scale: str = "weight_scale_inv"
    scale_dtype: torch.dtype = torch.float32
    power_of_two: bool = False
    # The shape of the only scale, and of the static activation scale that comes with it.
    single: tuple[int, ...] | None = None
    # The only scale is one for a fused gate and up: the same whichever of an expert's matrices is drawn.
    fused: bool = False
    expert: int = 0
    decoder: str = "fp8"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """`weight` and its scales."""
        codes = random_e4m3(rng, (rows, cols))
        block = (self.block[0] or rows, self.block[1] or cols)
        shape = (-(-rows // block[0]), -(-cols // block[1]))
        scales_rng = np.random.default_rng([cols, self.expert]) if self.fused else rng
        scales = random_scales(
            scales_rng, shape, 1 / (10 * cols**0.5), self.scale_dtype, power_of_two=self.power_of_two
        )
        value = e4m3_value(codes) * spread(scales.double().numpy(), block, rows, cols)
        tensors = {"weight": typed(codes, torch.float8_e4m3fn)}
        if self.fused:
            tensors[self.scale] = scales.reshape(1, 1)
            tensors["activation_scale"] = torch.full((1, 1), 0.03125)
        elif self.single is not None:
            tensors[self.scale] = scales.reshape(self.single)
            tensors["input_scale"] = torch.full(self.single, 0.03125)
        elif self.scale_dtype == torch.float8_e8m0fnu and self.scale == "weight_scale":
            # MXFP8 repositories store the exponents as plain bytes.
            tensors[self.scale] = scales.view(torch.uint8)
        else:
            tensors[self.scale] = scales
        return Drawn(tensors, value)


# Sign and magnitude; the negative zero is a code like any other.
E2M1: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def pack_fp4(codes: U8) -> U8:
    """Two codes a byte, even column in the low nibble."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


@dataclass(frozen=True)
class Mxfp4:
    """e2m1 with a power of two for every 32 inputs; names and item types differ between publishers."""

    weight: str = "weight"
    scale: str = "scale"
    weight_dtype: torch.dtype = torch.int8
    scale_dtype: torch.dtype = torch.float8_e8m0fnu
    decoder: str = "mxfp4"
    rtol: float = 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """Packed codes and exponents."""
        codes = rng.integers(0, 16, (rows, cols), np.uint8)
        scales = random_scales(
            rng, (rows, cols // 32), 1 / (3 * cols**0.5), torch.float8_e8m0fnu, power_of_two=True
        )
        value = E2M1[codes] * spread(scales.double().numpy(), (1, 32), rows, cols)
        return Drawn(
            {
                self.weight: typed(pack_fp4(codes), self.weight_dtype),
                self.scale: scales.view(self.scale_dtype),
            },
            value,
        )


@dataclass(frozen=True)
class Nvfp4:
    """e2m1 with an e4m3 scale for every 16 inputs and a number for the whole matrix.

    modelopt stores that number (`weight_scale_2`), compressed-tensors its reciprocal (`weight_global_scale`).
    """

    reciprocal: bool = False
    decoder: str = "nvfp4"

    @property
    def rtol(self) -> float:
        """A reader may round the reciprocal to float32, or divide."""
        return 2.0**-23 if self.reciprocal else 0.0

    def draw(self, rng: np.random.Generator, rows: int, cols: int) -> Drawn:
        """Packed codes, group scales, the matrix's scale and the static activation scale."""
        codes = rng.integers(0, 16, (rows, cols), np.uint8)
        groups = rng.integers(0x60, E4M3_LARGEST, (rows, cols // 16), np.uint8)
        # Group scales reach 448, so that the matrix's own scale is small, as amax / (6 · 448) makes it.
        size = np.float32(rng.uniform(0.5, 2) / (3 * 200 * cols**0.5))
        packed, scales = typed(pack_fp4(codes), torch.uint8), typed(groups, torch.float8_e4m3fn)
        unscaled = E2M1[codes] * spread(e4m3_value(groups), (1, 16), rows, cols)
        if self.reciprocal:
            divisor = torch.tensor([1 / size], dtype=torch.float32)
            tensors = {
                "weight_packed": packed,
                "weight_scale": scales,
                "weight_global_scale": divisor,
                "input_global_scale": torch.tensor([12.5]),
            }
            return Drawn(tensors, unscaled / divisor.double().numpy())
        tensors = {
            "weight": packed,
            "weight_scale": scales,
            "weight_scale_2": torch.tensor(size),
            "input_scale": torch.tensor(0.0078125),
        }
        return Drawn(tensors, unscaled * float(size))
