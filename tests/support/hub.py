"""A model hub on loopback that misbehaves on order: real sockets, both address styles, a CDN.

Serves a folder of <owner>/<repo>/<files>. Faults are queued per file name and used up one request at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    kind: str
    """drop, truncate, short, long, corrupt, html, status, norange, badrange, packed, stall, slow, etag"""
    at: int = 0
    """Body byte it happens at; for `status` the code."""
    """For `slow` the bytes per piece, for `etag` nothing."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One request."""

    path: str
    range: str | None
    token: str | None
    origin: str


class Hub:
    """The server and its CDN; a context manager."""

    def __init__(self, folder: Path, *, with_cdn: bool = False, token: str | None = None) -> None:
        self.folder, self.token = folder, token
        self.seen: list[Seen] = []
        self.stalled = threading.Event()
        """Set this to let go of an answer that stalls."""
        self.sent = 0
        """Body bytes of all files sent so far."""
        self.answers: dict[str, bytes] = {}
        """Fixed bodies by path, instead of what the hub would say."""
        self.search_extras: dict[str, dict[str, Any]] = {}
        """More keys for a repository in the answer to a search."""
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._main = _Server(self, "hub")
        self._cdn = _Server(self, "cdn") if with_cdn else None

    def __enter__(self) -> Hub:
        for server in filter(None, (self._main, self._cdn)):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in filter(None, (self._main, self._cdn)):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return self._main.url

    @property
    def cdn_url(self) -> str | None:
        return self._cdn.url if self._cdn else None

    def put(self, repo: str, name: str, data: bytes) -> None:
        path = self.folder / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def fail(self, name: str, kind: str, at: int = 0, times: int = 1, **headers: str) -> None:
        """Let the next answers about a file go wrong."""
        fault = Fault(kind, at, {key.replace("_", "-"): value for key, value in headers.items()})
        self._faults[name] += [fault] * times

    def next_fault(self, name: str) -> Fault | None:
        return self._faults[name].pop(0) if self._faults[name] else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, origin: str) -> None:
        self.hub, self.origin = hub, origin
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in Hub.seen."""

    def do_GET(self) -> None:
        self.close_connection = True
        url = urlsplit(self.path)
        hub = self.server.hub
        range_, token = self.headers["Range"], self.headers["Authorization"]
        hub.seen.append(Seen(self.path, range_, token, self.server.origin))
        if url.path in hub.answers:
            self._answer(200, hub.answers[url.path])
        elif match := re.fullmatch(r"/api/models/(\w[\w.-]*/[\w.-]+)(?:/revision/(\w+))?", url.path):
            self._api(match[1])
        elif match := re.fullmatch(r"/(?:models/)?([\w.-]+/[\w.-]+)/resolve/(\w+)/([^/]+)", url.path):
            self._file(hub.folder / match[1] / match[3])
        elif match := re.fullmatch(r"/api/v1/models/([\w.-]+/[\w.-]+)/repo/files", url.path):
            self._scope_api(match[1])
        elif match := re.fullmatch(r"/plain/([\w.-]+)/([^/]+)", url.path):
            self._file(hub.folder / match[1] / match[2])
        elif url.path == "/api/models":
            self._search(parse_qs(url.query).get("search", [""])[0])
        else:
            self._answer(404)

    def _api(self, repo: str) -> None:
        folder = self.server.hub.folder / repo
        if not folder.is_dir():
            self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
            return
        siblings = [_sibling(path) for path in sorted(folder.iterdir())]
        self._answer(200, json.dumps({"id": repo, "sha": REVISION, "siblings": siblings}).encode())

    def _scope_api(self, repo: str) -> None:
        folder = self.server.hub.folder / repo
        if not folder.is_dir():
            self._answer(404)
            return
        siblings = [_sibling(path) for path in sorted(folder.iterdir())]
        files = [
            {
                "Path": s["rfilename"],
                "Size": s["size"],
                "Sha256": s["lfs"]["sha256"],
                "Type": "blob",
                "IsLFS": True,
            }
            for s in siblings
        ]
        self._answer(200, json.dumps({"Code": 200, "Data": {"Files": files}}).encode())

    def _search(self, words: str) -> None:
        found = [
            f"{path.parent.name}/{path.name}"
            for path in sorted(self.server.hub.folder.glob("*/*"))
            if words.lower() in path.name.lower()
        ]
        hits = [{"id": repo, "tags": [], **self.server.hub.search_extras.get(repo, {})} for repo in found]
        self._answer(200, json.dumps(hits).encode())

    def _file(self, path: Path) -> None:
        hub, origin = self.server.hub, self.server.origin
        if hub.token and origin == "hub" and self.headers["Authorization"] != f"Bearer {hub.token}":
            self._answer(401, headers={"X-Error-Code": "GatedRepo"})
            return
        if not path.is_file():
            self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        if origin == "hub" and hub.cdn_url:
            self._answer(302, headers={"Location": f"{hub.cdn_url}{self.path}?signature=x"})
            return
        fault = hub.next_fault(path.name)
        if fault and fault.kind == "status":
            self._answer(fault.at, b"no", fault.headers)
        elif fault and fault.kind == "html":
            self._answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        else:
            self._send(path, fault)

    def _send(self, path: Path, fault: Fault | None) -> None:
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        data = path.read_bytes()
        total = len(data)
        if kind == "corrupt":
            data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        elif kind == "short":
            data, total = data[:at], at
        elif kind == "long":
            data, total = data + bytes(at), total + at
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if asked and kind != "norange":
            first, last = int(asked[1]), min(int(asked[2] or total - 1), total - 1)
            if first >= total:
                self._answer(416)
                return
            told = 0 if kind == "badrange" else first
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {told}-{last}/{total}")
            data = data[told : last + 1]
        else:
            self.send_response(200)
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        etag = fault.headers.get("ETag") if fault and kind == "etag" else f'"{path.stat().st_mtime_ns}"'
        self.send_header("ETag", str(etag))
        self.end_headers()
        self._body(data, kind, at)

    def _body(self, data: bytes, kind: str, at: int) -> None:
        if kind in ("drop", "truncate"):
            data = data[:at]
        step = at if kind == "slow" else 1 << 16
        try:
            for start in range(0, len(data), step):
                if kind == "stall" and start + step > at:
                    self.server.hub.stalled.wait(60)
                    return
                piece = data[start : start + step]
                self.connection.sendall(piece)
                self.server.hub.sent += len(piece)
        except OSError:
            pass  # the reader hung up
        if kind == "drop":  # a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _sibling(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {
        "rfilename": path.name,
        "size": len(data),
        "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
    }
