"""Downloads shards: continued where an earlier attempt stopped, and checked when whole.

Invariant: a file has its final name only when its length and SHA-256 are those that the Hub lists.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import logging
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import tqdm

from lsg import CheckpointError, LsgError
from lsg.convert.hub.repository import RemoteFile, Repository, refuse
from lsg.convert.workdir import fsync

_CHUNK_BYTES: Final = 8 << 20
# Enough of a shard for nearly every header; a longer one costs a second request.
_HEADER_GUESS: Final = 256 << 10
# safetensors' own limit; refuse a length that is not one before asking for that much.
_MAX_HEADER: Final = 100_000_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class StoppedError(Exception):
    """The download was told to stop."""


def read_header(repository: Repository, file: RemoteFile) -> bytes:
    """The shard's first bytes, its safetensors header included. Raises CheckpointError, LsgError."""

    def get(begin: int, end: int) -> bytes:
        response = get_session().get(
            _url(repository, file),
            headers={**build_hf_headers(), "Range": f"bytes={begin}-{min(end, file.nbytes) - 1}"},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        hf_raise_for_status(response)
        # A server that ignores the range sends everything.
        return response.content[begin if response.status_code == httpx.codes.OK else 0 :][: end - begin]

    try:
        data = get(0, _HEADER_GUESS) if file.nbytes else b""
        total = 8 + int.from_bytes(data[:8], "little")
        if total > min(file.nbytes, _MAX_HEADER):
            msg = f"{repository.hub_id}: {file.name} is not a safetensors file"
            raise CheckpointError(msg)
        return data[:total] if total <= len(data) else data + get(len(data), total)
    except HfHubHTTPError as error:
        refuse(repository.hub_id, repository.commit, error)
    except httpx.HTTPError as error:
        raise _interrupted(repository, file, error) from error


def download(
    repository: Repository,
    file: RemoteFile,
    path: Path,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Download into `path`, continuing `path`.part; told to `stop`, raises StoppedError.

    Raises CheckpointError for contents that differ from the Hub's checksum twice, LsgError for a connection
    that breaks for good; OSError of the disk.
    """
    part = path.with_name(f"{path.name}.part")
    for last_try in (False, True):
        _get(repository, file, part, advance, stop)
        if is_intact(file, part):
            fsync(part)
            part.rename(path)
            return
        part.unlink()
        advance(-file.nbytes)
        if last_try:
            msg = (
                f"{repository.hub_id}: {file.name} arrived twice with another checksum than the Hub lists; "
                "what is done is kept: run the same command again later"
            )
            raise CheckpointError(msg)


def is_intact(file: RemoteFile, path: Path) -> bool:
    """Whether a local file has the length and the contents that the Hub lists."""
    if path.stat().st_size != file.nbytes:
        return False
    if not _SHA256.fullmatch(file.version):
        return True  # a small file, for which the Hub lists no checksum of the contents
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.version


def _get(
    repository: Repository,
    file: RemoteFile,
    part: Path,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    class Told(tqdm):
        """Hands the library's progress on, and stops it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise StoppedError
            advance(int(n or 0))

    # Retries are the library's business until it gives up.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with part.open("ab") as stream:
        if stream.tell() > file.nbytes:
            stream.truncate(0)
            stream.seek(0)
        advance(stream.tell())
        _http_get(repository, file, stream, Told)


def _http_get(repository: Repository, file: RemoteFile, stream: BinaryIO, told: type[tqdm]) -> None:
    try:
        http_get(
            _url(repository, file),
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.nbytes,
            tqdm_class=told,
        )
    except HfHubHTTPError as error:
        refuse(repository.hub_id, repository.commit, error)
    except httpx.HTTPError as error:
        raise _interrupted(repository, file, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # The library's word for a length that is not the announced one.
        raise _interrupted(repository, file, error) from error


def _interrupted(repository: Repository, file: RemoteFile, error: Exception) -> LsgError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return LsgError(
        f"{repository.hub_id}: the download of {file.name} broke off ({reason}); "
        "run the same command again to continue it"
    )


def _url(repository: Repository, file: RemoteFile) -> str:
    return hf_hub_url(repository.hub_id, file.name, revision=repository.commit)
