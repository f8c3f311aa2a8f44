"""A repacked model directory, checked: the manifest and the header of every layer file agree.

Invariant: a RepackedModel exists only when each file the manifest names is there and passed the core's
validation; checksums of the contents are read on request, because that reads every byte.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsg import CheckpointError, CompatError, FormatError, manifest
from lsg._core import LayerFile
from lsg.manifest import Layer, Manifest
from lsg.runtime.settings import Settings

# config.json keys that give a mixture-of-experts model its number of routed experts.
_NUM_EXPERTS_KEYS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


def is_repacked(directory: Path) -> bool:
    """Whether lsg-convert made this model directory."""
    return manifest.path_in(directory).is_file()


@dataclass(frozen=True)
class RepackedModel:
    """A validated directory."""

    directory: Path
    manifest: Manifest

    @property
    def expert_bytes(self) -> int:
        """Size of all layer files."""
        return sum(layer.file_bytes for layer in self.manifest.layers)

    @property
    def dtypes(self) -> str:
        """What the experts' weights are stored as, such as "int4"."""
        names = {panel.dtype: None for layer in self.manifest.layers for panel in (layer.gate_up, layer.down)}
        return ", ".join(names)

    @property
    def draft_layers(self) -> list[Layer]:
        """Layers numbered after the model's own: its draft's, where that has experts in layer files."""
        config = json.loads((self.directory / "config.json").read_text())
        own = config.get("text_config", config)["num_hidden_layers"]
        return [layer for layer in self.manifest.layers if layer.index >= own]

    def path_of(self, layer: Layer) -> Path:
        """The layer's file."""
        return self.directory / manifest.DIRECTORY / layer.file

    def layer(self, index: int) -> Layer:
        """The layer with this transformer index. Raises CompatError."""
        for layer in self.manifest.layers:
            if layer.index == index:
                return layer
        msg = (
            f"{self.directory}: the model has routed experts in layer {index}, the directory only in layers "
            f"{self.manifest.layers[0].index} to {self.manifest.layers[-1].index}; convert the model again"
        )
        raise CompatError(msg)

    def check_settings(self, settings: Settings) -> None:
        """Raise CompatError when the user asked for another kind of experts, or for none of ours."""
        if not settings.hybrid:
            msg = f"{self.directory}: its experts are not in the checkpoint, so --no-hybrid cannot serve it"
            raise CompatError(msg)
        expected = settings.weights
        if expected is None:
            return
        accepted = {"bf16": {"bf16", "f16"}, "keep": {self.manifest.source.format}}.get(expected, {expected})
        if self.dtypes not in accepted:
            msg = (
                f"{self.directory}: its experts are {self.dtypes}, but LVLLM_MOE_USE_WEIGHT asks for "
                f"{expected}; make such a directory with "
                f"`lsg-convert --experts {expected} {self.manifest.source.model} OUT`"
            )
            raise CompatError(msg)

    def verify(self) -> Iterator[Layer]:
        """Compare every checksum, yielding each layer when it is done. Raises FormatError."""
        for layer in self.manifest.layers:
            path = self.path_of(layer)
            file = LayerFile(str(path))
            if file.table_crc32c() != layer.table_crc32c:
                raise _damaged(path, "expert table")
            for expert, expected in enumerate(layer.slab_crc32c):
                if file.slab_crc32c(expert) != expected:
                    raise _damaged(path, f"expert {expert}")
            yield layer


def open_model(directory: Path) -> RepackedModel:
    """Check the directory, all but its checksums. Raises FormatError."""
    model = RepackedModel(directory, manifest.load(directory))
    for layer in model.manifest.layers:
        path = model.path_of(layer)
        if not path.is_file():
            msg = f"{path}: missing, but the manifest names it; copy the whole directory or convert again"
            raise FormatError(msg)
        file = LayerFile(str(path))
        if file.header_crc32c != layer.header_crc32c:
            raise _damaged(path, "header")
        layer.check_spec(file.spec, path)
    return model


def check_ordinary(directory: Path) -> None:
    """Raise CheckpointError for a directory whose config has experts that are nowhere in it."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        msg = f"{directory}: not a model directory ({error})"
        raise CheckpointError(msg) from error
    text_config = config.get("text_config", {})
    if not any(config.get(key) or text_config.get(key) for key in _NUM_EXPERTS_KEYS):
        return
    names = list(_tensor_names(directory))
    if names and not any(".experts." in name for name in names):
        msg = (
            f"{directory}: a mixture-of-experts model without a single expert tensor, and without "
            f"{manifest.DIRECTORY}/{manifest.FILE_NAME}; copy the directory whole or convert the model again"
        )
        raise CheckpointError(msg)


def resident_bytes(directory: Path) -> int:
    """Size of the safetensors, which sglang loads itself."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _tensor_names(directory: Path) -> Iterator[str]:
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, Any] = json.loads(file.read(min(length, 100_000_000)))
            except (struct.error, ValueError) as error:
                msg = f"{path}: not a readable safetensors file ({error}); download it again"
                raise CheckpointError(msg) from error
        yield from (name for name in header if name != "__metadata__")


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path}: the checksum of its {what} is wrong; copy the file again or convert the model again"
    )
