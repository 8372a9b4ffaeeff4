"""A model hub on this machine, as far as ``huggingface_hub`` talks to one, that counts requests.

    with FakeHub() as hub:
        hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": b"..."})

Large files (``LFS_BYTES`` and more) are redirected to a second server, as the real hub does.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1 << 20


@dataclass
class Repo:
    """A repository: its commits (sha -> files), branches (name -> sha), card and access."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False  # files only with the token "friend"
    private: bool = False  # not even its name without it


@dataclass(frozen=True)
class Asked:
    """A request that came: which server, method, path and the headers that matter."""

    server: str
    method: str
    path: str
    token: str | None
    range: str | None


class FakeHub:
    """Both servers. Set ``break_after`` to cut each file's answer after that many bytes, as often
    as ``breaks`` says; ``status`` to answer everything with it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.break_after, self.breaks = 0, 0
        self.status = 0
        self.forged: dict[str, bytes] = {}  # etag -> other bytes of the same length
        self._servers = {name: self._serve(name) for name in ("hub", "storage")}

    def _serve(self, name: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "server_name_of_ours": name})
        server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def url(self, name: str = "hub") -> str:
        return f"http://127.0.0.1:{self._servers[name].server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], *, branch: str = "main", **about: Any) -> str:
        """Commits `files` to a branch, creating what is missing; returns the commit."""
        one = self.repos.setdefault(repo, Repo())
        for name, value in about.items():
            setattr(one, name, value)
        count = str(len(one.commits)).encode()
        commit = hashlib.sha1(repo.encode() + count).hexdigest()
        one.commits[commit] = dict(files)
        one.branches[branch] = commit
        return commit

    def count(self, method: str = "", part: str = "") -> int:
        """How many requests came whose method and path hold these."""
        return sum(1 for a in self.asked if method in a.method and part in a.path)

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def etag_of(data: bytes) -> str:
    """SHA-256 of a large file; git's hash of a small one."""
    if len(data) >= LFS_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    server_name_of_ours: str

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        token, span = self.headers.get("Authorization"), self.headers.get("Range")
        asked = Asked(self.server_name_of_ours, self.command, self.path, token, span)
        self.hub.asked.append(asked)
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.hub.status:
            self._send(self.hub.status, b"down")
        elif path.startswith("api/models/"):
            self._info(path.removeprefix("api/models/"), asked)
        elif path.startswith("storage/"):
            self._stored(path.removeprefix("storage/"))
        else:
            self._file(path, asked)

    def _find(self, name: str, asked: Asked) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and asked.token != "Bearer friend"):
            self._send(404 if asked.token else 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _info(self, path: str, asked: Asked) -> None:
        name, _, revision = path.partition("/revision/")
        repo = self._find(name, asked)
        commit = self._commit(repo, revision or "main") if repo else None
        if repo is None or commit is None:
            return
        siblings = []
        for file, data in repo.commits[commit].items():
            one: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": etag_of(data)}
            if len(data) >= LFS_BYTES:
                one["lfs"] = {"sha256": etag_of(data), "size": len(data), "pointerSize": 134}
            siblings.append(one)
        info = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings,
                "private": repo.private, "gated": "auto" if repo.gated else False, "tags": [],
                "downloads": 0, "likes": 0, "cardData": repo.card}  # fmt: skip
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, asked: Asked) -> None:
        name, _, rest = path.partition("/resolve/")
        repo = self._find(name, asked)
        if repo is None:
            return
        heads = [r for r in (*repo.branches, *repo.commits) if rest.startswith(f"{r}/")]
        commit = self._commit(repo, max(heads, key=len, default="-"))
        if commit is None:
            return
        file = rest.removeprefix(max(heads, key=len) + "/")
        data = repo.commits[commit].get(file)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif repo.gated and asked.token != "Bearer friend":
            self._send(403 if asked.token else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif len(data) >= LFS_BYTES:
            self._send(302, b"", {
                "X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag_of(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.hub.url('storage')}/storage/{etag_of(data)}",
            })  # fmt: skip
        else:
            self._send_file(data, {"X-Repo-Commit": commit, "ETag": f'"{etag_of(data)}"'})

    def _stored(self, etag: str) -> None:
        all_files = [
            f for r in self.hub.repos.values() for c in r.commits.values() for f in c.values()
        ]
        data = next(f for f in all_files if len(f) >= LFS_BYTES and etag_of(f) == etag)
        self._send_file(self.hub.forged.get(etag, data), {"ETag": f'"{etag}"'})

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        span = self.headers.get("Range")
        if not span:
            self._send(200, data, headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
        if begin >= len(data):
            self._send(416, b"")
            return
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self._send(206, data[begin : end + 1], headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.hub
        if hub.breaks and hub.break_after and len(data) > hub.break_after:
            hub.breaks -= 1
            self.wfile.write(data[: hub.break_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data)
