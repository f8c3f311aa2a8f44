"""A model repository at one commit: which files there are, and where the local cache keeps them.

Invariant: after `find`, the commit is fixed; a branch that moves later changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lsg import CheckpointError, LsgError
from lsg.convert.checkpoint import INDEX_NAME
from lsg.convert.resident import is_small_file

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it. version: the SHA-256 of a large file's contents, a small one's git id."""

    name: str
    nbytes: int
    version: str


@dataclass(frozen=True)
class Repository:
    """directory: where the cache keeps the commit's files.

    files: by name; empty when the Hub was not reached and only the cache can serve.
    """

    hub_id: str
    commit: str
    directory: Path
    files: Mapping[str, RemoteFile]

    @property
    def blobs(self) -> Path:
        """Where the cache keeps contents, named by version."""
        return self.directory.parents[1] / "blobs"

    def cached(self, name: str) -> Path | None:
        """The file in the cache, if it is there."""
        found = try_to_load_from_cache(self.hub_id, name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def link_blob(self, file: RemoteFile) -> Path:
        """Give a blob that is in the cache its name there. Raises CheckpointError, LsgError."""
        try:
            return Path(hf_hub_download(self.hub_id, file.name, revision=self.commit))
        except HfHubHTTPError as error:
            refuse(self.hub_id, self.commit, error)
        except (LocalEntryNotFoundError, httpx.HTTPError) as error:
            msg = f"{self.hub_id}: connection lost ({_first_line(error)}); run the same command again"
            raise LsgError(msg) from error


def find(hub_id: str, asked: str | None, pinned: str | None) -> Repository:
    """The repository at the pinned commit, or at what `asked` (a branch, tag or commit) means now.

    All files but the weights are in the cache on return. Without a connection, or with HF_HUB_OFFLINE, the
    cache decides. Raises CheckpointError, LsgError.
    """
    revision = pinned or asked
    try:
        # By name, so that the cache remembers what the name stood for; everything else by commit.
        directory = Path(hf_hub_download(hub_id, CONFIG_NAME, revision=revision)).parent
        commit = directory.name
    except (LocalEntryNotFoundError, httpx.TransportError) as error:
        raise _unreachable(hub_id, revision, error) from error
    except (HfHubHTTPError, HFValidationError) as error:
        refuse(hub_id, revision, error)
    try:
        info = HfApi().model_info(hub_id, revision=commit, files_metadata=True, timeout=30.0)
        files = {
            entry.rfilename: RemoteFile(
                entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id or ""
            )
            for entry in info.siblings or ()
        }
        for name in files:
            if name == INDEX_NAME or is_small_file(Path(name)):
                hf_hub_download(hub_id, name, revision=commit)
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx.TransportError):
        return Repository(hub_id, commit, directory, {})
    except (HfHubHTTPError, HFValidationError) as error:
        refuse(hub_id, commit, error)
    return Repository(hub_id, commit, directory, files)


def refuse(hub_id: str, revision: str | None, error: Exception) -> NoReturn:
    """Raise what the Hub's answer means for the user, as one sentence."""
    if isinstance(error, GatedRepoError):
        msg = f"{hub_id}: gated; accept its terms on {constants.ENDPOINT}/{hub_id}, then run: hf auth login"
    elif isinstance(error, RevisionNotFoundError):
        msg = f"{hub_id}: has no revision {revision}; choose a branch, tag or commit that it has"
    elif isinstance(error, EntryNotFoundError):
        msg = f"{hub_id}: has no {CONFIG_NAME}; it is no model in the format of transformers"
    elif isinstance(error, RepositoryNotFoundError):
        msg = (
            f"{hub_id}: neither a directory here nor a model on {constants.ENDPOINT}; "
            "if it is private, log in with: hf auth login"
        )
    else:
        msg = f"{hub_id}: {constants.ENDPOINT} answered: {_first_line(error)}; try again later"
    raise CheckpointError(msg) from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unreachable(hub_id: str, revision: str | None, error: Exception) -> LsgError:
    wanted = f" at {revision}" if revision else ""
    reason = (
        "HF_HUB_OFFLINE is set"
        if constants.HF_HUB_OFFLINE
        else f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})"
    )
    return LsgError(f"{hub_id}{wanted}: not in the cache {constants.HF_HUB_CACHE}, and {reason}")
