"""experts/manifest.json: the catalogue of a repacked model directory.

Invariant: what `load` returns has been checked key by key against `csrc/format/FORMAT.md`; unknown, missing
or duplicate keys, wrong types and versions this program does not know raise FormatError.
"""

import json
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from lsg._core import Dtype, FormatError, LayerSpec, PanelFormat, ScaleDtype

MAGIC: Final = "lsg-experts"
VERSION: Final = 1
DIRECTORY: Final = "experts"
FILE_NAME: Final = "manifest.json"
MAX_BYTES: Final = 256 << 20

DTYPES: Final = {
    "int4": Dtype.INT4,
    "int8": Dtype.INT8,
    "fp8_e4m3": Dtype.FP8_E4M3,
    "fp8_e5m2": Dtype.FP8_E5M2,
    "bf16": Dtype.BF16,
    "f16": Dtype.F16,
    "fp4_e2m1": Dtype.FP4_E2M1,
}
SCALE_DTYPES: Final = {
    "none": ScaleDtype.NONE,
    "f32": ScaleDtype.F32,
    "f16": ScaleDtype.F16,
    "bf16": ScaleDtype.BF16,
    "fp8_e4m3": ScaleDtype.FP8_E4M3,
    "e8m0": ScaleDtype.E8M0,
}
_DTYPE_NAMES = {value: name for name, value in DTYPES.items()}
_SCALE_DTYPE_NAMES = {value: name for name, value in SCALE_DTYPES.items()}


class Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where the experts came from."""

    model: str
    revision: str | None
    format: str


class ActivationSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The experts' activation function and its parameters (limit 0: no clamp); see FORMAT.md."""

    kind: Literal["silu", "swiglu_clamped", "silu_clamped", "swigluoai", "gelu_tanh", "relu2", "situ"]
    alpha: float
    limit: float

    def __str__(self) -> str:
        """In words, with the parameters that the kind has."""
        words: list[str] = [self.kind]
        if self.kind in ("swigluoai", "situ"):
            words.append(f"alpha {self.alpha}")
        if self.kind not in ("silu", "gelu_tanh", "relu2"):
            words.append(f"limit {self.limit}")
        return " ".join(words)


class Panel(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A panel format in names; see FORMAT.md."""

    dtype: str
    scale_dtype: str
    scale_rows: int
    scale_k: int
    zero_point: bool
    bias: bool
    global_scale: bool
    k_permutation: bool

    @classmethod
    def of(cls, panel: PanelFormat) -> "Panel":
        """Name the fields of a core PanelFormat."""
        return cls(
            dtype=_DTYPE_NAMES[panel.dtype],
            scale_dtype=_SCALE_DTYPE_NAMES[panel.scale_dtype],
            scale_rows=panel.scale_rows,
            scale_k=panel.scale_k,
            zero_point=panel.zero_point,
            bias=panel.bias,
            global_scale=panel.global_scale,
            k_permutation=panel.k_permutation,
        )


class QuantizationError(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Relative squared error of each projection, ||W - W'||² / ||W||², over all experts of the layer."""

    gate: float | None
    up: float
    down: float


class Layer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One layer file: geometry, formats, checksums."""

    index: int
    prefix: str
    file: str
    file_bytes: int
    num_experts: int
    hidden_size: int
    intermediate_size: int
    unit_rows: int
    gated: bool
    activation: ActivationSpec
    gate_up: Panel
    down: Panel
    header_crc32c: int
    table_crc32c: int
    slab_crc32c: list[int]
    error: QuantizationError | None

    def check_spec(self, spec: LayerSpec, where: Path) -> None:
        """Raise FormatError unless the layer file's own header says the same as this entry."""
        expected = {
            "index": spec.layer_index,
            "file_bytes": spec.file_bytes,
            "num_experts": spec.num_experts,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "unit_rows": spec.unit_rows,
            "gated": spec.gated,
            "gate_up": Panel.of(spec.gate_up),
            "down": Panel.of(spec.down),
        }
        for name, value in expected.items():
            if getattr(self, name) != value:
                msg = (
                    f"{where}: the file's header says {name} = {value}, the manifest says "
                    f"{getattr(self, name)}; the directory is damaged, convert it again"
                )
                raise FormatError(msg)


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole catalogue."""

    magic: str
    version: int
    endianness: str
    created_by: str
    source: Source
    options: dict[str, str | int | bool]
    architecture: str
    model_type: str
    top_k: int
    layers: list[Layer]


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"key {twice!r} appears twice"
        raise ValueError(msg)
    return found


def path_in(model_dir: Path) -> Path:
    """Where a repacked model directory keeps its manifest."""
    return model_dir / DIRECTORY / FILE_NAME


def dumps(manifest: Manifest) -> bytes:
    """JSON text of the manifest, the same bytes for the same manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def load(model_dir: Path) -> Manifest:
    """Read and check a repacked model directory's manifest. Raises FormatError."""
    path = path_in(model_dir)
    try:
        if path.stat().st_size > MAX_BYTES:
            msg = f"{path}: {path.stat().st_size} bytes, but a manifest has at most {MAX_BYTES}"
            raise FormatError(msg)
        raw = json.loads(path.read_bytes(), object_pairs_hook=_reject_duplicates)
    except FileNotFoundError:
        msg = f"{path}: not found; is {model_dir} a directory that lsg-convert made?"
        raise FormatError(msg) from None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path}: not a readable manifest ({error}); convert the model again"
        raise FormatError(msg) from error
    # Magic and version first: a newer manifest may have keys that only a newer program knows.
    if not isinstance(raw, dict) or raw.get("magic") != MAGIC:
        msg = f"{path}: no expert manifest (expected magic {MAGIC!r})"
        raise FormatError(msg)
    if raw.get("version") != VERSION:
        msg = (
            f"{path}: format version {raw.get('version')!r}, but this lsg reads version {VERSION}; "
            "upgrade lsg or convert the model again"
        )
        raise FormatError(msg)
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        msg = f"{path}: {error}; the manifest is damaged, convert the model again"
        raise FormatError(msg) from error
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    if manifest.endianness != "little":
        msg = f"{path}: endianness {manifest.endianness!r}, expected 'little'"
        raise FormatError(msg)
    indices = [layer.index for layer in manifest.layers]
    if not indices or indices != sorted(set(indices)):
        msg = f"{path}: layer indices must be a rising, non-empty list, found {indices[:8]}"
        raise FormatError(msg)
    for layer in manifest.layers:
        expected = layer_file_name(layer.index)
        if layer.file != expected:
            # A file name is never a path: a manifest cannot make the reader leave its directory.
            msg = f"{path}: layer {layer.index} names file {layer.file!r}, expected {expected!r}"
            raise FormatError(msg)
        if len(layer.slab_crc32c) != layer.num_experts:
            msg = (
                f"{path}: layer {layer.index} lists {len(layer.slab_crc32c)} checksums "
                f"for {layer.num_experts} experts"
            )
            raise FormatError(msg)


def layer_file_name(index: int) -> str:
    """File name of a layer in the experts directory."""
    return f"layer-{index:05d}.lsgb"
