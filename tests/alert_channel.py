"""A chat channel's webhook on this machine, for tests of what a run and its watcher tell."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator


class Channel(http.server.ThreadingHTTPServer):
    """Keeps what was posted to it; answers with `codes` in turn, then 200; a code of 0 never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[tuple[str, dict]] = []
        self.codes: list[int] = []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/services/SECRET"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        channel = self.server
        assert isinstance(channel, Channel)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        channel.posts.append((self.headers["Content-Type"], body))
        code = channel.codes.pop(0) if channel.codes else 200
        if code == 0:
            channel.released.wait(60)
            return
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def listening() -> Iterator[Channel]:
    server = Channel()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
