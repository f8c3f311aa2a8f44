"""A repository as the origin of a conversion: its shards in the Hub's cache, or passing through one by one.

Invariant: the cache's own files are never changed or removed; what `--stream` downloads never enters it.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lsg import CapacityError, LsgError
from lsg.convert.checkpoint import RemoteShard, shard_names
from lsg.convert.console import Progress, size_text
from lsg.convert.hub.download import StoppedError, download, is_intact, read_header
from lsg.convert.hub.repository import RemoteFile, Repository, find

# A connection seldom fills the line; more than a few seldom bring more.
_CONNECTIONS: Final = 4


class HubOrigin:
    """A repository at a commit; fulfils `Origin`."""

    def __init__(
        self,
        repository: Repository,
        asked: str | None,
        remote: Mapping[str, RemoteShard],
        *,
        stream: bool,
    ) -> None:
        self._repository = repository
        self.name = self.hub_id = repository.hub_id
        self.asked = asked
        self.revision = repository.commit
        self.directory = repository.directory
        self.remote = remote
        self.stream = stream

    def fetch(self, shards: Sequence[str], directory: Path, progress: Progress) -> Mapping[str, Path]:
        """Download into the cache, or with `stream` into `directory`. Raises LsgError, OSError."""
        files = [self._repository.files[shard] for shard in shards]
        if not self.stream:
            return self._fetch_into_cache(files, progress)
        for file in files:
            path = directory / file.name
            # A file that an earlier run left was whole then; a power cut may have changed that.
            if path.exists() and not is_intact(file, path):
                path.unlink()
            if not path.exists():
                progress.say(f"downloading {file.name} ({size_text(file.nbytes)})")
                download(self._repository, file, path, lambda _: None, threading.Event())
        return {file.name: directory / file.name for file in files}

    def release(self, shard: str, directory: Path) -> None:
        """Remove a shard that has passed through."""
        (directory / shard).unlink(missing_ok=True)

    def _fetch_into_cache(self, files: Sequence[RemoteFile], progress: Progress) -> Mapping[str, Path]:
        total = sum(file.nbytes for file in files)
        blobs = self._repository.blobs
        free = shutil.disk_usage(blobs).free + sum(path.stat().st_size for path in blobs.glob("*.part"))
        if total > free:
            msg = (
                f"{blobs}: the download takes {size_text(total)}, but only {size_text(free)} are free; "
                "add --stream to keep only one shard at a time, or set HF_HOME to another disk"
            )
            raise CapacityError(msg)
        progress.begin(total, 0, "downloading")
        lock, stop = threading.Lock(), threading.Event()

        def advance(nbytes: int) -> None:
            with lock:
                progress.advance(nbytes)

        def fetch(file: RemoteFile) -> tuple[str, Path]:
            blob = blobs / file.version
            if not blob.exists():
                download(self._repository, file, blob, advance, stop)
            return file.name, self._repository.link_blob(file)

        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download") as pool:
            futures = [pool.submit(fetch, file) for file in files]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # After a failure or Ctrl-C, the others stop where they are; what they have is kept.
                pool.shutdown(wait=False, cancel_futures=True)
                stop.set()
        finished = [future for future in futures if not future.cancelled()]
        failures = [error for future in finished if (error := future.exception())]
        for error in failures:
            if not isinstance(error, StoppedError):
                raise error
        return dict(future.result() for future in finished)


@contextmanager
def open_model(
    hub_id: str, asked: str | None, pinned: str | None, *, stream: bool, say: Callable[[str], None]
) -> Iterator[HubOrigin]:
    """Find a model, and read the headers of all shards that the cache does not have. Raises LsgError.

    pinned: the commit that an unfinished conversion has begun with.
    """
    repository = find(hub_id, asked, pinned)
    if not repository.files:
        say(f"{hub_id}: the Hub was not asked, using commit {repository.commit} from the cache")
    available = {path.name for path in repository.directory.iterdir()} | set(repository.files)
    names = shard_names(repository.directory, available)
    with tempfile.TemporaryDirectory(prefix="lsg-headers-") as headers:
        remote: dict[str, RemoteShard] = {}
        missing = []
        for name in names:
            path = repository.cached(name)
            if path:
                # The cache names contents by their version, so that it is known without a connection.
                remote[name] = RemoteShard(path, path.resolve().name, absent=False)
            elif name in repository.files:
                missing.append(repository.files[name])
            elif not repository.files:
                msg = (
                    f"{hub_id}: {name} is not in the cache, and the Hub was not asked (HF_HUB_OFFLINE, or no "
                    "connection); download it first"
                )
                raise LsgError(msg)
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="header") as pool:
            for file, header in zip(
                missing, pool.map(lambda file: read_header(repository, file), missing), strict=True
            ):
                path = Path(headers) / file.name
                with path.open("wb") as sparse:
                    sparse.write(header)
                    sparse.truncate(file.nbytes)
                remote[file.name] = RemoteShard(path, file.version, absent=True)
        yield HubOrigin(repository, asked, remote, stream=stream)
