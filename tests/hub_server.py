"""A model hub on localhost: the few endpoints that ``huggingface_hub`` asks for, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

COMMITS = {"main": "a" * 40, "old": "b" * 40}


class HubServer:
    """Serves ``files[commit]`` as repository ``org/model``; other repositories do not exist.

    Attributes:
        requests: every request as (method, path, Range header or "").
        cut_after: bytes of a weights file after which each of the next ``cuts`` downloads is cut off.
        down: answer downloads of weights with status 503.
        spoil: names whose bytes are served with one bit flipped.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self.trees = {COMMITS[name]: {p.name: p.read_bytes() for p in d.iterdir()} for name, d in files.items()}
        self.requests: list[tuple[str, str, str]] = []
        self.cuts = 0
        self.cut_after = 0
        self.down = False
        self.spoil: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def ranges(self) -> list[str]:
        """Range headers of the downloads so far that had one."""
        return [header for method, _, header in self.requests if method == "GET" and header]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range", "")))
        if path.startswith("/api/models/org/model/tree/"):
            tree = self.trees.get(path.split("/")[6])
            return self._json(request, 200, [_entry(n, d) for n, d in tree.items()]) if tree else self._missing(request)
        if path == "/api/models/org/model" or path.startswith("/api/models/org/model/revision/"):
            revision = path.split("/")[6] if "/revision/" in path else "main"
            commit = COMMITS.get(revision, revision)
            if commit not in self.trees:
                return self._missing(request)
            return self._json(request, 200, {"id": "org/model", "sha": commit, "siblings": [], "tags": []})
        if path.startswith("/org/model/resolve/"):
            commit, name = path.split("/")[4:6]
            return self._file(request, commit, name)
        return self._json(request, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def _missing(self, request: BaseHTTPRequestHandler) -> None:
        self._json(request, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})

    def _file(self, request: BaseHTTPRequestHandler, commit: str, name: str) -> None:
        data = self.trees[commit][name]
        etag = _etag(name, data)
        is_weights = name.endswith(".safetensors")
        if request.command == "GET" and self.down and is_weights:
            return self._json(request, 503, {"error": "down"})
        start = 0
        if wanted := request.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        if name in self.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {"Content-Length": len(body), "ETag": f'"{etag}"', "X-Repo-Commit": commit}.items():
            request.send_header(key, str(value))
        request.end_headers()
        if request.command == "HEAD":
            return None
        if is_weights and self.cuts > 0:
            self.cuts -= 1
            request.wfile.write(body[: self.cut_after])
            request.wfile.flush()
            request.close_connection = True
            return None
        try:
            request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            request.close_connection = True
        return None

    @staticmethod
    def _json(
        request: BaseHTTPRequestHandler, status: int, document: object, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(document).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _etag(name: str, data: bytes) -> str:
    if name.endswith((".safetensors", ".bin")):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _etag(name, data)[:40]}
    if name.endswith((".safetensors", ".bin")):
        entry["lfs"] = {"oid": _etag(name, data), "size": len(data), "pointerSize": 134}
    return entry
