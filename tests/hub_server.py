"""A loopback server that speaks what a download needs of the Hugging Face Hub's protocol, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

RESOLVE = re.compile(r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
REVISIONS = ("main", "v2")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of `method` whose path ends in `path`."""

    path: str
    method: str = "GET"
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after this many bytes of the body."""
    flip: int | None = None
    """Invert the byte at this offset of the file."""
    stall: float = 0.0
    """Seconds of silence before the answer."""


@dataclass
class Hub:
    """What the server holds. A path is `owner/name/file`, or `datasets/owner/name/file`."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True
    linked: bool = True
    """Files are in LFS: HEAD answers with a redirect to another host, and the ETag is the sha256."""
    token: str | None = None
    claimed_size: int | None = None
    pace: float = 0.0
    """Seconds for every 16 kB of a body."""

    def commit(self, revision: str) -> str:
        return revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of the GET requests for bytes of `path`, redirects left out."""
        return [headers for method, p, headers in self.requests if method == "GET" and p.endswith(path)]

    def find_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and path.endswith(fault.path) and fault.times > 0:
                fault.times -= 1
                return fault
        return None


def etag(content: bytes, *, linked: bool = True) -> str:
    """As the Hub names content: sha256 of a file in LFS, else git's blob id."""
    if linked:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.state, unquote(self.path)
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"), {})
            return
        match = RESOLVE.fullmatch(path)
        if match is None:  # a plain server such as GitHub's
            self._file(path.lstrip("/"), {})
            return
        name, revision = f"{match['repo']}/{match['path']}", match["revision"]
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._status(401, {"X-Error-Code": "GatedRepo"})
        elif revision not in REVISIONS and revision not in map(hub.commit, REVISIONS):
            self._status(404, {"X-Error-Code": "RevisionNotFound"})
        elif name not in hub.files:
            self._status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit(revision)})
        else:
            tag = etag(hub.files[name], linked=hub.linked)
            commit = {"X-Repo-Commit": hub.commit(revision)}
            if hub.linked and not self._fault_waits(name):
                size = hub.claimed_size or len(hub.files[name])
                host = hub.url.replace("127.0.0.1", "localhost")
                linked = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(size), "Location": f"{host}/cdn/{name}"}
                self._status(302, {**commit, **linked}, record=self.command == "HEAD")
            else:
                self._file(name, {**commit, "ETag": f'"{tag}"'})

    def _fault_waits(self, name: str) -> bool:
        """A fault of a HEAD shows at the Hub, one of a GET where the bytes are."""
        return self.command == "HEAD" and any(
            f.method == "HEAD" and name.endswith(f.path) and f.times > 0 for f in self.state.faults
        )

    def _file(self, name: str, headers: dict[str, str]) -> None:
        hub = self.state
        hub.requests.append((self.command, name, dict(self.headers)))
        fault = hub.find_fault(self.command, name) or Fault(name)
        time.sleep(fault.stall)
        if fault.status or name not in hub.files:
            self._status(fault.status or 404, fault.headers, record=False)
            return
        content = bytearray(hub.files[name])
        if fault.flip is not None:
            content[fault.flip] ^= 0xFF
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(first[1]) if first and hub.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        headers.setdefault("ETag", f'"plain-{hashlib.md5(hub.files[name]).hexdigest()}"')
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            body = content[start:]
            self._send(bytes(body if fault.cut is None else body[: fault.cut]))
        self.close_connection = True

    def _send(self, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the other side may be killed
            for at in range(0, len(body), 1 << 14):
                self.wfile.write(body[at : at + (1 << 14)])
                time.sleep(self.state.pace)

    def _status(self, status: int, headers: dict[str, str], *, record: bool = True) -> None:
        if record:
            self.state.requests.append((self.command, unquote(self.path), dict(self.headers)))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()
