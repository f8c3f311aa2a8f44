"""The journal of a conversion: what is finished, one checksummed line each.

Invariant: a line is written only after the data it speaks of is durable, and `append` returns only when the
line is too. So a line that is whole is true; from the first one that is not (a crash tore it) nothing more is
believed. What a line says holds for the shards that the last identity before it names.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lsg import CapacityError, LsgError
from lsg._core import crc32c

FILE_NAME: Final = "journal"


class ShardIdentity(msgspec.Struct, frozen=True):
    """A shard of the source: a repaired download has another version, another model another header."""

    name: str
    nbytes: int
    version: str
    header_crc32c: int


class Identity(msgspec.Struct, frozen=True, tag="conversion"):
    """What a conversion is of and into: only the same one may be continued.

    model: the Hub id, empty for a local directory; asked: the revision that the user named; revision: the
    commit that it stood for.
    """

    created_by: str
    options: dict[str, str | int | bool]
    model: str
    asked: str | None
    revision: str | None
    config_crc32c: int
    shards: list[ShardIdentity]

    def difference(self, other: "Identity") -> str:
        """Words for the first field in which the two differ, this one's value first; empty if none does.

        Shards that differ in their version alone do not make it another conversion.
        """
        if self.options != other.options:
            return f"options {_words(self.options)} instead of {_words(other.options)}"
        if self.created_by != other.created_by:
            return f"{self.created_by} instead of {other.created_by}"
        if (self.model, self.revision) != (other.model, other.revision):
            return f"{_origin(self)} instead of {_origin(other)}"
        mine, theirs = ({(s.name, s.nbytes, s.header_crc32c) for s in one.shards} for one in (self, other))
        changed = {name for name, _, _ in mine ^ theirs}
        if changed:
            return f"another version of {min(changed)}"
        if self.config_crc32c != other.config_crc32c:
            return "another config.json"
        return ""


class SlabDone(msgspec.Struct, frozen=True, tag="slab"):
    """An expert that is in its layer file; errors: squared error and norm of gate, up, down.

    table: where in the file its shares of the expert table are: offset, bytes, checksum.
    """

    layer: int
    expert: int
    crc32c: int
    errors: list[tuple[float, float] | None]
    table: list[tuple[int, int, int]]


class ResidentDone(msgspec.Struct, frozen=True, tag="resident"):
    """All tensors of one shard that go into a resident safetensors file."""

    name: str
    shard: str


Entry = SlabDone | ResidentDone


class Journal:
    """An open journal, positioned after its last whole line."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open or create; `found` is whose journal it was, None for a new one. Raises LsgError."""
        self.entries: list[Entry] = []
        self.found: Identity | None = None
        self._versions: list[Mapping[str, str]] = []
        self._last: Identity | None = None
        good_bytes = 0
        for line, record in _records(path):
            good_bytes += len(line)
            if isinstance(record, Identity):
                self.found = record
            else:
                self._remember(record, self.found or identity)
        self._identity = identity
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._fd, good_bytes)
        os.lseek(self._fd, good_bytes, os.SEEK_SET)
        if self.found is None or (self.found != identity and not self.found.difference(identity)):
            self._append([identity])

    def current(self, shards_of: Callable[[Entry], Iterable[str]]) -> list[Entry]:
        """The entries that still hold: none of the shards that each came from has changed since."""
        now = _versions(self._identity)
        return [
            entry
            for entry, then in zip(self.entries, self._versions, strict=True)
            if all(then.get(shard) == now.get(shard) for shard in shards_of(entry))
        ]

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries whose data is durable; they are durable on return."""
        self._append(entries)
        for entry in entries:
            self._remember(entry, self._identity)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _remember(self, entry: Entry, identity: Identity) -> None:
        self.entries.append(entry)
        # One dictionary for all entries of an identity.
        same = self._versions and self._last is identity
        self._versions.append(self._versions[-1] if same else _versions(identity))
        self._last = identity

    def _append(self, records: Sequence[Entry | Identity]) -> None:
        lines = b"".join(_line(msgspec.json.encode(record)) for record in records)
        if os.write(self._fd, lines) != len(lines):
            msg = "the disk is full; make room and run the same command again to continue"
            raise CapacityError(msg)
        os.fdatasync(self._fd)


def last_identity(path: Path) -> Identity | None:
    """Whose journal it is; None if there is none. Raises LsgError."""
    return next((r for _, r in reversed(list(_records(path))) if isinstance(r, Identity)), None)


def _versions(identity: Identity) -> dict[str, str]:
    return {shard.name: shard.version for shard in identity.shards}


def _records(path: Path) -> Iterator[tuple[bytes, Identity | Entry]]:
    """(line, what it says) of every whole line."""
    for line, payload in _whole_lines(path.read_bytes() if path.exists() else b""):
        try:
            yield line, msgspec.json.decode(payload, type=Identity | SlabDone | ResidentDone)
        except msgspec.ValidationError as error:
            msg = f"{path}: written by another version of lsg-convert ({error}); add --restart to start over"
            raise LsgError(msg) from error


def _line(payload: bytes) -> bytes:
    return b"%08x %s\n" % (crc32c(payload), payload)


def _whole_lines(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(line, payload) up to the first torn one."""
    for line in data.splitlines(keepends=True):
        payload = line[9:-1]
        if line != _line(payload):
            return
        yield line, payload


def _origin(identity: Identity) -> str:
    return f"{identity.model or 'a local directory'}{f' at {identity.revision}' if identity.revision else ''}"


def _words(options: dict[str, str | int | bool]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))
