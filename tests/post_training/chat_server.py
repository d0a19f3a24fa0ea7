"""A server on this machine that speaks OpenAI's chat completions as a test tells it to."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes, dict[str, str]]
"""Status, body, headers."""


def said(content: str, finish: str = "stop", **message: Any) -> Answer:
    """A completion of 10 tokens to a prompt of 20."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 20, "completion_tokens": 10}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode(), {}


class ChatServer:
    """Answers each request with what `answer` makes of its body; keeps the bodies, with their headers under "headers"."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append(
                    body | {"headers": {name.lower(): value for name, value in self.headers.items()}, "path": self.path}
                )
                status, content, headers = server.answer(body)
                if status == 0:  # dies with the answer half written
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + content)
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
