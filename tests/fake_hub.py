"""A server that speaks as much of the Hugging Face Hub's language as downloads need."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_accepted"


@dataclass
class Repo:
    """What one repository has at one commit, and how it misbehaves.

    files: contents by name. gated: files need TOKEN. dropped: files whose connection closes halfway, once.
    sizes: what the listing says instead of a file's true size.
    """

    files: dict[str, bytes]
    gated: bool = False
    dropped: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    revision: str = "main"

    @property
    def commit(self) -> str:
        return hashlib.sha1(self.revision.encode()).hexdigest()


@dataclass
class Hub:
    """A running server: its repositories by name, and the requests it got.

    status, page: the error or the page that it answers everything with instead.
    """

    address: str
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    status: int | None = None
    page: bytes | None = None

    @property
    def downloaded(self) -> list[str]:
        """The names of the files whose contents were asked for, in order."""
        return [
            line.split("/resolve/")[1].split("/", 1)[1]
            for line in self.requests
            if line.startswith("GET /") and "/resolve/" in line
        ]


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files by name, as a repository has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        hub.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
        hub.agents.add(self.headers.get("User-Agent", ""))
        parts = path.strip("/").split("/")
        if hub.status is not None:
            self._error(hub.status, "")
        elif hub.page is not None:
            self._send(200, hub.page, {"Content-Type": "text/html"})
        elif parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]), "/".join(parts[5:]))
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "")

    def _listing(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        siblings = [
            {"rfilename": file, "size": repo.sizes.get(file, len(content)), "blobId": _etag(content)}
            for file, content in repo.files.items()
        ]
        body = json.dumps({"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings})
        self._send(200, body.encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision)
        token = self.headers.get("Authorization")
        if repo is None:
            return
        if repo.gated and token != f"Bearer {TOKEN}":
            self._error(403 if token else 401, "GatedRepo")
        elif file not in repo.files:
            self._error(404, "EntryNotFound")
        else:
            self._contents(repo, file)

    def _contents(self, repo: Repo, file: str) -> None:
        content = repo.files[file]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        dropped = self.command == "GET" and file in repo.dropped
        if dropped:
            repo.dropped.remove(file)
        self._send(206 if start else 200, content[start:], headers, dropped)

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.server.hub.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound")
        elif revision not in (repo.revision, repo.commit):
            self._error(404, "RevisionNotFound")
            repo = None
        return repo

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], dropped: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if dropped else body)
        if dropped:
            self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
