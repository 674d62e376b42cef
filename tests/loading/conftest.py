"""A tiny model to read, and a hub on this machine that speaks as much of both protocols as the clients need."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model in hub layout. Read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


class LocalHub(ThreadingHTTPServer):
    """Serves the folder `root`/<owner>/<name> as a repository, to the clients of both hubs."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.strip("/").split("/")
        if path[:3] == ["api", "v1", "models"] and len(path) >= 5:
            self._modelscope("/".join(path[3:5]), path[5:], query)
        elif path[:2] == ["api", "models"]:
            self._huggingface("/".join(path[2:4]), path[4:])
        elif len(path) > 4 and path[2] == "resolve":
            self._send_file(self.server.root / path[0] / path[1], "/".join(path[4:]))
        else:
            self._send(404, b"{}")

    def _modelscope(self, repository: str, rest: list[str], query: dict[str, str]) -> None:
        root = self.server.root / repository
        if rest == ["repo", "files"]:
            files = [
                {
                    "Path": name,
                    "Name": Path(name).name,
                    "Type": "blob",
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Revision": COMMIT,
                }
                for name, content in _contents(root)
                if name.startswith(query.get("Root", ""))
            ]
            self._send_json({"Code": 200, "Success": True, "Data": {"Files": files, "LatestCommitter": {}}})
        elif rest == ["repo"]:
            self._send_file(root, query["FilePath"])
        elif rest == ["revisions"]:
            revisions = {"Branches": [{"Revision": "master"}], "Tags": []}
            self._send_json({"Code": 200, "Success": True, "Data": {"RevisionMap": revisions}})
        else:
            self._send_json({"Code": 200, "Success": True, "Data": {"Path": repository, "Name": repository}})

    def _huggingface(self, repository: str, rest: list[str]) -> None:
        contents = _contents(self.server.root / repository)
        if not contents:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in contents
            ]
            self._send_json(tree)
        else:
            siblings = [{"rfilename": name} for name, _ in contents]
            self._send_json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})

    def _send_file(self, root: Path, name: str) -> None:
        content = dict(_contents(root)).get(name)
        if content is None:
            self._send(404, b"{}")
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if start:
            last = int(end) if end else len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._send(206, content[int(start) : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _contents(root: Path) -> list[tuple[str, bytes]]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in files]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A running hub. Its repositories are the folders under `hub.root`, which a test may set."""
    server = LocalHub(tmp_path_factory.mktemp("hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
