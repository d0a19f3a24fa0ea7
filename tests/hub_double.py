"""The Hugging Face Hub's read interface over HTTP for dataset repositories, on this machine, with faults on request.

It serves a folder of repositories, ROOT/org/name, as the Hub does: the commit of a revision, the files as a tree with sizes
and (of Parquet and gzip files) the SHA-256, and the files themselves, by byte range too. What it lacks is answered 404.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubDouble(ThreadingHTTPServer):
    """The server; `requests` lists what was asked, `faults` what goes wrong."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []
        self.faults: dict[str, list[int]] = {}
        """Part of a path: what becomes of its next GETs: a status, 0 for a body that breaks off, 1 for one that takes long."""
        self.megabytes = 0
        """Sent of the body that takes long."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """Files whose content was asked for."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET /datasets/")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubDouble

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for part, codes in self.server.faults.items():
            if part in path and codes and self.command == "GET":
                return self.fail(codes.pop(0))
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self.info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            return self.tree(match[1], match[3] or "", "recursive=true" in self.path.lower())
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.file(*match.groups())
        return self.answer(404, b"no such route")

    def info(self, repository: str, revision: str) -> None:
        if repository == "org/gated":
            return self.error(403, "GatedRepo")
        if not (self.server.root / repository).is_dir():
            return self.error(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.error(404, "RevisionNotFound")
        return self.answer(200, json.dumps({"_id": "0", "id": repository, "sha": COMMIT}).encode())

    def tree(self, repository: str, folder: str, recursive: bool) -> None:
        root = self.server.root / repository
        if not (root / folder).is_dir():
            return self.error(404, "EntryNotFound")
        entries = []
        for path in sorted((root / folder).rglob("*") if recursive else (root / folder).iterdir()):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
                continue
            entry = {"type": "file", "oid": "1" * 40, "size": path.stat().st_size, "path": name}
            if path.suffix in (".parquet", ".gz"):
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": path.stat().st_size, "pointerSize": 130}
            entries.append(entry)
        return self.answer(200, json.dumps(entries).encode())

    def file(self, repository: str, revision: str, name: str) -> None:
        path = self.server.root / repository / name
        if not path.is_file():
            return self.error(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
            return self.answer(206, data[first:], {**headers, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})
        return self.answer(200, data, headers)

    def fail(self, code: int) -> None:
        if code == 404:
            return self.error(code, "EntryNotFound")
        if code > 1:
            return self.answer(code, b"busy")
        self.send_response(200)
        self.send_header("Content-Length", "400000000")
        self.end_headers()
        self.wfile.write(b"a part of it")
        self.close_connection = True
        with suppress(OSError):  # the other side has hung up
            while code == 1 and self.server.megabytes < 400:
                self.wfile.write(bytes(1_000_000))
                self.server.megabytes += 1
                sleep(0.01)
        return None

    def error(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub_double(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """Serve `root` and have huggingface_hub, in this process, ask there."""
    server = HubDouble(root)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
