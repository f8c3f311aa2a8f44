"""A read-only view of a safetensors checkpoint: a local directory, or one whose shards come and go.

Invariant: once a Checkpoint exists, the header of every shard is known, valid, and agrees with the index, so
that nothing is written for a checkpoint that is incomplete. A shard is local and whole, or it is absent:
then its tensors cannot be read until `attach`. Memory holds what was asked for; pickles are never opened.
"""

import json
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from lsg import CheckpointError
from lsg._core import crc32c, map_range

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
# A copy of less costs no more than a mapping.
_MAPPED_BYTES: Final = 256 << 10
# What offsets must be multiples of for every array over the bytes to be aligned.
_WIDEST_ITEM: Final = 4
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's bytes lie: offset counts from the start of the shard, dtype is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of the checkpoint and what tells a changed one from the same one.

    version: the Hub's checksum of the contents, or a local file's time of change.
    """

    name: str
    nbytes: int
    version: str
    header_crc32c: int


@dataclass(frozen=True)
class RemoteShard:
    """A shard of a checkpoint on the Hub.

    path: the shard itself, or, where `absent`, a sparse file of its length that holds nothing but its header.
    """

    path: Path
    version: str
    absent: bool


class Checkpoint:
    """An opened and validated checkpoint; safe to read from several threads."""

    def __init__(self, directory: Path, remote: Mapping[str, RemoteShard] | None = None) -> None:
        """Open and validate. Raises CheckpointError with the first thing that is wrong.

        remote: where shards lie that `directory` does not hold, by name.
        """
        self.directory = directory
        self.config: Mapping[str, Any] = _read_json(directory / "config.json")
        self.shards: list[Shard] = []
        self.tensors: dict[str, Tensor] = {}
        self._remote = remote or {}
        self._fds: dict[str, int] = {}
        weight_map = _weight_map(directory, {path.name for path in directory.iterdir()} | set(self._remote))
        with ExitStack() as stack:
            stack.callback(self._close)
            for name in sorted(set(weight_map.values())):
                self._open_shard(name)
            self._check_index(weight_map)
            self._files = stack.pop_all()
        for name, shard in self._remote.items():
            if shard.absent:
                self.detach(name)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def is_absent(self, shard: str) -> bool:
        """Whether the shard must be attached before its tensors can be read."""
        return shard not in self._fds

    def attach(self, shard: str, path: Path) -> None:
        """Read an absent shard's tensors from `path`. Raises CheckpointError if it has other tensors."""
        known = next(known for known in self.shards if known.name == shard)
        fd = os.open(path, os.O_RDONLY)
        header_bytes = int.from_bytes(os.pread(fd, 8, 0), "little")
        same = os.fstat(fd).st_size == known.nbytes and header_bytes <= known.nbytes
        if not same or crc32c(os.pread(fd, header_bytes, 8)) != known.header_crc32c:
            os.close(fd)
            msg = f"{path}: not the shard that was announced; remove it and run the same command again"
            raise CheckpointError(msg)
        self._fds[shard] = fd

    def detach(self, shard: str) -> None:
        """Let go of a shard's file; the shard is absent until it is attached again."""
        os.close(self._fds.pop(shard))

    def read(
        self, tensor: Tensor, start: int = 0, nbytes: int | None = None, *, in_file: bool = False
    ) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, or so many from `start`, where the page cache has them or in a copy: read only.

        in_file: they are for the core, which reads them from the file itself; nobody may look at them.
        Raises CheckpointError if the file has shrunk.
        """
        nbytes = tensor.nbytes if nbytes is None else nbytes
        offset = tensor.offset + start
        if nbytes >= _MAPPED_BYTES and offset % _WIDEST_ITEM == 0:
            found = map_range(self._fd(tensor), offset, nbytes, populate=not in_file)
            if found is not None:
                return found
        data = np.empty(nbytes, np.uint8)
        self.read_into(tensor, start, data.data)
        return data

    def read_into(self, tensor: Tensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `start`. Raises as `read`."""
        fd = self._fd(tensor)
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(fd, [buffer[done:]], tensor.offset + start + done)
            except OSError as error:
                error.filename = str(self.directory / tensor.shard)
                raise
            if count == 0:
                where = self.directory / tensor.shard
                msg = f"{where}: ended inside {tensor.name}; the file changed while it was read"
                raise CheckpointError(msg)
            done += count

    def _fd(self, tensor: Tensor) -> int:
        fd = self._fds.get(tensor.shard)
        if fd is None:
            msg = (
                f"{self.directory / tensor.shard}: {tensor.name} is needed at a time when its shard is not "
                "on the disk; convert without --stream"
            )
            raise CheckpointError(msg)
        return fd

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def _open_shard(self, name: str) -> None:
        remote = self._remote.get(name)
        path = self.directory / name
        held = remote.path if remote else path
        try:
            fd = os.open(held, os.O_RDONLY)
        except FileNotFoundError:
            msg = f"{path}: missing, but {INDEX_NAME} names it; download the checkpoint again"
            raise CheckpointError(msg) from None
        self._fds[name] = fd
        stat = os.fstat(fd)
        try:
            # The library checks the header against its limits and its offsets against the file's length.
            with safe_open(held, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            msg = (
                f"{path}: truncated or not a safetensors file ({stat.st_size} bytes; {error}); "
                "download it again"
            )
            raise CheckpointError(msg) from error
        header_bytes = int.from_bytes(os.pread(fd, 8, 0), "little")
        header = os.pread(fd, header_bytes, 8)
        version = remote.version if remote else str(stat.st_mtime_ns)
        self.shards.append(Shard(name, stat.st_size, version, crc32c(header)))
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for tensor_name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            if tensor_name in self.tensors:
                msg = (
                    f"{path}: tensor {tensor_name} is also in {self.tensors[tensor_name].shard}; "
                    "remove the file that does not belong to this checkpoint"
                )
                raise CheckpointError(msg)
            begin, end = entry["data_offsets"]
            self.tensors[tensor_name] = Tensor(
                name=tensor_name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                shard=name,
                offset=8 + header_bytes + begin,
                nbytes=end - begin,
            )

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        # A tensor that the index forgot is kept all the same: loaders take whatever the shards hold.
        for name, shard in weight_map.items():
            if name and (name not in self.tensors or self.tensors[name].shard != shard):
                found = f"it is in {self.tensors[name].shard}" if name in self.tensors else "no shard has it"
                index = self.directory / INDEX_NAME
                msg = f"{index}: places {name} in {shard}, but {found}; download both again"
                raise CheckpointError(msg)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        msg = f"{path}: not found; the source must be a Hugging Face model directory"
        raise CheckpointError(msg) from None
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not readable as JSON ({error}); download it again"
        raise CheckpointError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path}: expected a JSON object, found {type(content).__name__}"
        raise CheckpointError(msg)
    return content


def shard_names(directory: Path, available: Collection[str]) -> list[str]:
    """The shards of the checkpoint in `directory`, of which the `available` files exist somewhere.

    Raises CheckpointError if there are none.
    """
    return sorted(set(_weight_map(directory, available).values()))


def _weight_map(directory: Path, available: Collection[str]) -> Mapping[str, str]:
    """Tensor name -> shard; a checkpoint of one file has no index, hence one nameless entry."""
    index = directory / INDEX_NAME
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            msg = f"{index}: has no weight_map; download it again"
            raise CheckpointError(msg)
        for shard in weight_map.values():
            if not isinstance(shard, str) or Path(shard).name != shard:
                msg = f"{index}: {shard!r} is not a file name"
                raise CheckpointError(msg)
        return weight_map
    if SINGLE_NAME in available:
        return {"": SINGLE_NAME}
    if any(name.endswith(".safetensors") for name in available):
        msg = f"{directory}: has safetensors shards but no {INDEX_NAME}; download the checkpoint again"
        raise CheckpointError(msg)
    if any(name.endswith(_PICKLE_SUFFIXES) for name in available):
        msg = (
            f"{directory}: has only pickled weights, which can run code when loaded and are never opened; "
            "save the model as safetensors first"
        )
        raise CheckpointError(msg)
    msg = f"{directory}: has no safetensors weights; the source must be a Hugging Face model directory"
    raise CheckpointError(msg)
