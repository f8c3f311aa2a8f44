"""Where a checkpoint comes from: a local directory, or a repository on the Hub (`lsg.convert.hub`).

Invariant: `directory` holds config.json, the index and all small files from the start; weights may come
later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lsg.convert.checkpoint import RemoteShard
from lsg.convert.console import Progress


class Origin(Protocol):
    """A checkpoint's files. `name` goes into the manifest; hub_id is empty for a local directory."""

    @property
    def name(self) -> str: ...  # noqa: D102 (the class says it)
    @property
    def hub_id(self) -> str: ...  # noqa: D102
    @property
    def asked(self) -> str | None:
        """The revision that the user named, if any."""

    @property
    def revision(self) -> str | None:
        """The commit that it stands for."""

    @property
    def directory(self) -> Path: ...  # noqa: D102
    @property
    def remote(self) -> Mapping[str, RemoteShard]:
        """Shards that are not in `directory` itself."""

    @property
    def stream(self) -> bool:
        """Whether a shard is fetched only when it is needed, and released after."""

    def fetch(self, shards: Sequence[str], directory: Path, progress: Progress) -> Mapping[str, Path]:
        """Get absent shards, whole and checked; `directory` is for those that will be released."""

    def release(self, shard: str, directory: Path) -> None:
        """A fetched shard has served."""


@dataclass(frozen=True)
class LocalOrigin:
    """A directory with all of a checkpoint."""

    directory: Path
    hub_id: str = ""
    asked: str | None = None
    revision: str | None = None
    stream: bool = False
    remote: Mapping[str, RemoteShard] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    def fetch(self, shards: Sequence[str], directory: Path, progress: Progress) -> Mapping[str, Path]:
        """Nothing is ever absent."""
        return {}

    def release(self, shard: str, directory: Path) -> None:
        """Nothing was fetched."""
