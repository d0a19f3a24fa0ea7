"""S3 on this machine: moto's server in a thread, with a log of what is sent, faults on request, and requests that are held."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any
from urllib.request import Request, urlopen

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Start = Callable[..., Any]
"""WSGI's start_response."""


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        pass


class S3Double:
    """The server as a WSGI application around moto's."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.reset()

    @property
    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return {**keys, "S3_ENDPOINT_URL": self.address}

    def start_afresh(self) -> None:
        """No buckets, nothing special to happen."""
        self.ask("reset")
        self.reset()

    def reset(self) -> None:
        """Nothing special to happen."""
        self.arrived: list[str] = []
        """Keys of objects that were received, in order; large ones, which come in parts, when they are put together."""
        self.faults: dict[str, list[int]] = {}
        """Part of a key -> what becomes of the next requests to write it: a status, or 0: it is held, and then breaks off."""
        self.read_faults: dict[str, list[int]] = {}
        """The same for requests to read it."""
        self.held, self.released = Event(), Event()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        key, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        writes = method == "PUT" or (method == "POST" and "uploadId=" in environ["QUERY_STRING"])
        due = self.faults if writes else self.read_faults
        fault = next((faults.pop(0) for part, faults in due.items() if part in key and faults), None)
        if fault == 0:
            self.held.set()
            self.released.wait(60)
            raise ConnectionAbortedError
        if fault:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{fault} injected", [("Content-Type", "application/xml")])
            code = "SlowDown" if fault >= 500 else "InvalidRequest"
            return [f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()]
        if writes and "partNumber=" not in environ["QUERY_STRING"]:
            self.arrived.append(key)
        answer: Iterable[bytes] = self._moto(environ, start)
        return answer

    def ask(self, path: str, body: str = "") -> dict[str, Any]:
        """Something of moto's own interface."""
        request = Request(f"{self.address}/moto-api/{path}", body.encode(), {"Content-Type": "text/plain"}, method="POST")
        with urlopen(request) as answer:
            content: dict[str, Any] = json.loads(answer.read())
        return content


@contextmanager
def s3_double() -> Iterator[S3Double]:
    double = S3Double()
    thread = Thread(target=double.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        double.released.set()
        double.server.shutdown()
        double.server.server_close()
        thread.join()
