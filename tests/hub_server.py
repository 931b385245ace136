"""A small hub on 127.0.0.1, which answers as huggingface.co and proxies do."""

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40
WRONG_TOKEN = "hf_wrong"
# What is answered for repositories of these names: status, and headers.
ANSWERS = {
    "missing/model": (404, {"X-Error-Code": "RepoNotFound"}),
    "unsloth/Qwen3-4B-Thinkin": (404, {"X-Error-Code": "RepoNotFound"}),
    "gated/model": (401, {"X-Error-Code": "GatedRepo"}),
    "busy/model": (429, {"Retry-After": "60"}),
    "down/model": (503, {}),
    "forbidden/model": (403, {}),
    "revised/model": (404, {"X-Error-Code": "RevisionNotFound"}),
}


class Hub:
    """The server: its address, the requests that it got, the folders that it serves."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[str] = []
        self.folders: dict[str, Path] = {}


class _Handler(BaseHTTPRequestHandler):
    def _answer(self, status: int, headers: dict | None = None, body: bytes = b""):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:  # noqa: N802
        hub: Hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("http"):  # This is a proxy, for once.
            return self._answer(407)
        if WRONG_TOKEN in self.headers.get("Authorization", ""):
            message = "Invalid credentials in Authorization header"
            return self._answer(401, {"X-Error-Message": message})
        found = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if found is None:  # Lists of files, statistics.
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        name, file = found.groups()
        if name in ANSWERS:
            return self._answer(*ANSWERS[name])
        path = hub.folders.get(name, Path("/nowhere")) / file
        if not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        body = path.read_bytes()
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        return self._answer(200, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)

    do_HEAD = do_CONNECT = do_GET

    def log_message(self, *arguments: object) -> None:
        """Write nothing."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.hub
        server.shutdown()


def fill_cache(cache: Path, repository: str, folder: Path) -> Path:
    """Put a folder into the hub's cache, as a download leaves it; the copy."""
    home = cache / f"models--{repository.replace('/', '--')}"
    copy = home / "snapshots" / COMMIT
    shutil.copytree(folder, copy)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return copy
