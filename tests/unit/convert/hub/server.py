"""A stand-in for the Hub on 127.0.0.1: what huggingface_hub needs to download and upload models.

Repositories are local directories, one for each commit. Every request is recorded; faults can be planned.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".lsgb")


@dataclass
class Repository:
    commits: dict[str, Path]
    refs: dict[str, str]


@dataclass
class Uploaded:
    """What has been put into a repository by commits."""

    files: dict[str, bytes] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    """Serves until the `with` block ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        # Ids whose terms nobody has accepted.
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        # File name -> what to do with its next GETs: ("drop", bytes sent) or ("corrupt", position) or
        # ("status", code).
        self.faults: dict[str, list[tuple[str, int]]] = {}
        self.uploads: dict[str, Uploaded] = {}
        self.objects: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str) -> list[str]:
        """The ranges of all GETs of a file, empty for the whole of it."""
        return [range_ for method, path, range_ in self.requests if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        for pattern, answer in (
            (r"/api/models/(?P<id>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?", self._info),
            (r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)", self._file),
            (r"/api/repos/create", self._create),
            (r"/api/models/(?P<id>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", self._preupload),
            (r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/objects/(?P<oid>[0-9a-f]{64})", self._object),
            (r"/api/models/(?P<id>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", self._commit),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                answer(**match.groupdict())
                return
        self._send(404, b"no such endpoint")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int = -1) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent < 0 else body[:sent])
        if sent >= 0:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _directory(self, hub_id: str, rev: str | None) -> tuple[str, Path] | None:
        """The commit and its directory; answers itself if there is none."""
        repository = self.server.repositories.get(hub_id)
        commit = repository and repository.refs.get(rev or "main", rev or "")
        if repository and commit in repository.commits:
            return commit, repository.commits[commit]
        code = "RevisionNotFound" if repository else "RepoNotFound"
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"})
        return None

    def _info(self, id: str, rev: str | None) -> None:
        if id in self.server.uploads:
            self._json({"id": id, "sha": "f" * 40, "siblings": []})
            return
        found = self._directory(id, rev)
        if found:
            commit, directory = found
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            siblings = [_sibling(path, str(path.relative_to(directory))) for path in files]
            self._json({"id": id, "sha": commit, "siblings": siblings})

    def _file(self, id: str, rev: str, name: str) -> None:
        found = self._directory(id, rev)
        if not found:
            return
        if id in self.server.gated:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            return
        commit, directory = found
        path = directory / name
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            self._send(404, b"", headers)
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{_version(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        fault, where = ("", 0)
        # A request for the header is not the download.
        if self.command == "GET" and not self.headers.get("Range", "").startswith("bytes=0-"):
            fault, where = (self.server.faults.get(name) or [("", 0)]).pop(0)
        if fault == "status":
            self._send(where, b"")
            return
        if fault == "corrupt":
            data = data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            begin = int(asked[1])
            end = min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            status, data = 206, data[begin:end]
        self._send(status, data, headers, sent=where if fault == "drop" else -1)

    def _create(self) -> None:
        request = json.loads(self.body)
        hub_id = f"{request.get('organization') or 'me'}/{request['name']}"
        self.server.uploads.setdefault(hub_id, Uploaded())
        self._json({"url": f"{self.server.endpoint}/{hub_id}", "id": hub_id})

    def _preupload(self, id: str, rev: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files, "commitOid": "f" * 40})

    def _batch(self, id: str) -> None:
        objects = [
            {
                "oid": wanted["oid"],
                "size": wanted["size"],
                # An object that is there already needs no upload.
                **(
                    {}
                    if wanted["oid"] in self.server.objects
                    else {"actions": {"upload": {"href": f"{self.server.endpoint}/objects/{wanted['oid']}"}}}
                ),
            }
            for wanted in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send(400, b"wrong checksum")
            return
        self.server.objects[oid] = self.body
        self._send(200, b"")

    def _commit(self, id: str, rev: str) -> None:
        files = self.server.uploads[id].files
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.objects[entry["value"]["oid"]]
        url = f"{self.server.endpoint}/{id}/commit/{'f' * 40}"
        self._json({"commitUrl": url, "commitOid": "f" * 40, "hookOutput": ""})


def _version(path: Path) -> str:
    data = path.read_bytes()
    if path.name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(path: Path, name: str) -> dict[str, object]:
    size = path.stat().st_size
    found: dict[str, object] = {"rfilename": name, "size": size, "blobId": _version(path)}
    if name.endswith(LFS_SUFFIXES):
        found["lfs"] = {"sha256": _version(path), "size": size, "pointerSize": 130}
    return found
