"""The journal of a conversion: what is finished, one checksummed line each.

Invariant: a line is written only after the data it speaks of is durable, and `append` returns only when the
line is too. So a line that is whole is true; from the first one that is not (a crash tore it) nothing more is
believed.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lsg import CapacityError, LsgError
from lsg._core import crc32c

FILE_NAME: Final = "journal"


class ShardIdentity(msgspec.Struct, frozen=True):
    """A shard of the source: a repaired download has another time, another model another header."""

    name: str
    nbytes: int
    mtime_ns: int
    header_crc32c: int


class Identity(msgspec.Struct, frozen=True, tag="conversion"):
    """What a conversion is of and into: only the same one may be continued."""

    created_by: str
    options: dict[str, str | int | bool]
    config_crc32c: int
    shards: list[ShardIdentity]

    def difference(self, other: "Identity") -> str:
        """Words for the first field in which the two differ, this one's value first; empty if none does."""
        if self.options != other.options:
            return f"options {_words(self.options)} instead of {_words(other.options)}"
        if self.created_by != other.created_by:
            return f"{self.created_by} instead of {other.created_by}"
        changed = {shard.name for shard in set(self.shards) ^ set(other.shards)}
        if changed:
            return f"another version of {min(changed)}"
        if self.config_crc32c != other.config_crc32c:
            return "another config.json"
        return ""


class SlabDone(msgspec.Struct, frozen=True, tag="slab"):
    """An expert that is in its layer file; errors: squared error and norm of gate, up, down."""

    layer: int
    expert: int
    crc32c: int
    errors: list[tuple[float, float] | None]


class ResidentDone(msgspec.Struct, frozen=True, tag="resident"):
    """A resident safetensors file that is complete."""

    name: str
    nbytes: int


Entry = SlabDone | ResidentDone


class Journal:
    """An open journal, positioned after its last whole line."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open or create; `found` is whose journal it was, None for a new one. Raises LsgError."""
        self.entries: list[Entry] = []
        self.found: Identity | None = None
        good_bytes = 0
        for line, payload in _whole_lines(path.read_bytes() if path.exists() else b""):
            try:
                record = msgspec.json.decode(payload, type=Identity | SlabDone | ResidentDone)
            except msgspec.ValidationError as error:
                msg = (
                    f"{path}: written by another version of lsg-convert ({error}); "
                    "add --restart to start over"
                )
                raise LsgError(msg) from error
            if isinstance(record, Identity):
                self.found = record
            else:
                self.entries.append(record)
            good_bytes += len(line)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._fd, good_bytes)
        os.lseek(self._fd, good_bytes, os.SEEK_SET)
        if self.found is None:
            self._append([identity])

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries whose data is durable; they are durable on return."""
        self._append(entries)
        self.entries.extend(entries)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, records: Sequence[Entry | Identity]) -> None:
        lines = b"".join(_line(msgspec.json.encode(record)) for record in records)
        if os.write(self._fd, lines) != len(lines):
            msg = "the disk is full; make room and run the same command again to continue"
            raise CapacityError(msg)
        os.fdatasync(self._fd)


def _line(payload: bytes) -> bytes:
    return b"%08x %s\n" % (crc32c(payload), payload)


def _whole_lines(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(line, payload) up to the first torn one."""
    for line in data.splitlines(keepends=True):
        payload = line[9:-1]
        if line != _line(payload):
            return
        yield line, payload


def _words(options: dict[str, str | int | bool]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))
