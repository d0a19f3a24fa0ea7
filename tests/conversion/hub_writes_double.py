"""The Hugging Face Hub's interface for pushing models over HTTP, on this machine, with faults on request.

Beside it, tests/data_tools/hub_double.py serves a folder of datasets for reading; nothing of that is written to.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, RLock, Thread
from urllib.parse import unquote, urlsplit

import pytest
from hub_repositories import Hub, Refusal, Request

CUT, HOLD, LOSE, PAGE = "cut", "hold", "lose", "page"
"""What may become of a request instead of a status: the connection closes when half of its body was read; the same, once
`released` is set; it is carried out and not answered; it is answered with a page that a proxy might send."""

_NAME, _REVISION, _OID = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^?]+)", r"(?P<oid>[0-9a-f]{64})"
ROUTES = {
    "create": "POST /api/repos/create",
    "refs": f"GET /api/models/{_NAME}/refs",
    "commits": f"GET /api/models/{_NAME}/commits/{_REVISION}",
    "branch": f"POST /api/models/{_NAME}/branch/{_REVISION}",
    "tag": f"POST /api/models/{_NAME}/tag/{_REVISION}",
    "info": f"GET /api/models/{_NAME}(/revision/{_REVISION})?",
    "tree": f"GET /api/models/{_NAME}/tree/{_REVISION}",
    "preupload": f"POST /api/models/{_NAME}/preupload/{_REVISION}",
    "batch": f"POST /{_NAME}.git/info/lfs/objects/batch",
    "upload": f"PUT /upload/{_OID}",
    "verify": f"POST /verify/{_OID}",
    "card": "POST /api/validate-yaml",
    "commit": f"POST /api/models/{_NAME}/commit/{_REVISION}",
    "resolve": rf"(GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
"""Kind of request -> method and path; hub_repositories.Hub has a function of that name for each."""


class HubWritesDouble(ThreadingHTTPServer):
    """The server, what it keeps, and what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = Hub()
        self.hub.address = self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = RLock()
        self.log: list[str] = []
        """The kinds of all requests, in order."""
        self.faults: dict[str, list[int | str | Callable[[], object] | None]] = defaultdict(list)
        """Kind -> what becomes of the next requests; None: nothing special; a function: it is called before the request is."""
        self.fault_headers: dict[str, str] = {}
        """Sent along with statuses that are faults."""
        self.held, self.released = Event(), Event()
        """A request is being held; it may go."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubWritesDouble

    def log_message(self, *arguments: object) -> None:
        pass

    def take(self) -> None:
        path = f"{self.command} {unquote(urlsplit(self.path).path)}"
        found = [(kind, match) for kind, pattern in ROUTES.items() if (match := re.fullmatch(pattern, path))]
        if not found:
            return self.answer(404, b"no such route", {})
        kind, match = found[0]
        with self.server.lock:
            self.server.log.append(kind)
            fault = self.server.faults[kind].pop(0) if self.server.faults[kind] else None
        if fault in (CUT, HOLD):
            return self.break_off(wait=fault == HOLD)
        request = Request(self.headers.get("Authorization", "").removeprefix("Bearer "), self.body())
        if isinstance(fault, int):
            return self.answer(fault, b'{"error": "injected"}', self.server.fault_headers)
        if fault == PAGE:
            return self.answer(200, b"<html>Log in to this network</html>", {})
        if callable(fault):
            fault()
        try:
            with self.server.lock:
                result = getattr(self.server.hub, kind)(request, **{k: v for k, v in match.groupdict().items() if v})
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return self.answer(refusal.status, json.dumps(refusal.content).encode(), headers)
        if fault == LOSE:
            self.close_connection = True
            return None
        if isinstance(result, tuple):
            return self.answer(200, *result)
        return self.answer(200, json.dumps(result).encode(), {})

    do_GET = do_HEAD = do_POST = do_PUT = take

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def break_off(self, wait: bool) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        if wait:
            self.server.held.set()
            self.server.released.wait(60)
        self.close_connection = True

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub_writes_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubWritesDouble]:
    """A server that huggingface_hub, in this process, asks with a token that may write to the namespace `me`."""
    server = HubWritesDouble()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
