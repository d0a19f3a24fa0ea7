"""The nodes of a step help each other: while it lasts, each serves the files that it has, and asks others before the source.

They find each other through files in DIR, which all see:

    DIR/NODE.json     {"address", "port", "token"}: where the node serves, and the token without which it answers nobody
    DIR/NODE.ended    the node has all that it needs, or gave up; it goes on serving until all have ended

A node has a file from the moment at which it gets its name, so while many load at once each fetches others first and soon has
something to give. What a node gets from another it compares with the manifest like everything else.
"""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Thread
from urllib.parse import quote, unquote

from slurm.staging.disk import PARTIAL
from slurm.staging.sources import BLOCK
from smol_data.manifest import FileEntry

SOCKET_SECONDS = 60.0
"""A peer that is silent for so long is not asked again."""
GATHER_SECONDS = 60.0
"""For the others' tasks to start; who comes later is not asked."""
SPEAK_SECONDS = 60.0
"""Between two lines that tell who is waited for."""


class Peer:
    """Another node of the step."""

    def __init__(self, node: str, address: str, port: int, token: str) -> None:
        self.node, self._address, self._port, self._token = node, address, port, token
        self._gone = False

    def copy(self, name: str, entry: FileEntry, partial: Path) -> bool:
        """Whether `partial` now has all bytes of the file. The peer may lack the file, or be gone."""
        if self._gone:
            return False
        connection = HTTPConnection(self._address, self._port, timeout=SOCKET_SECONDS)
        try:
            with partial.open("ab") as target:
                headers = {"Authorization": self._token, "Range": f"bytes={target.tell()}-"}
                connection.request("GET", quote(f"/{name}/{entry.name}"), headers=headers)
                answer = connection.getresponse()
                if answer.status != 206:
                    return False
                while block := answer.read(BLOCK):
                    target.write(block)
                return target.tell() == entry.bytes
        except (OSError, HTTPException):
            self._gone = True
            return False
        finally:
            connection.close()


class Step:
    """The nodes of this step, of which this is one."""

    def __init__(self, folder: Path) -> None:
        """`folder` is new for each step. What else there is to know, Slurm tells; without it, the node is alone."""
        self._folder = folder
        self.node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        self._place = int(os.environ.get("SLURM_NODEID", "0"))

    @property
    def share(self) -> float:
        """This node's place among the others, in [0, 1)."""
        return self._place / self._nodes

    def say(self, sentence: str) -> None:
        """On stderr, with the node's name."""
        print(f"{self.node}: {sentence}", file=sys.stderr, flush=True)

    @contextmanager
    def serving(self, root: Path) -> Iterator[None]:
        """Serve the files below `root` to the other nodes, if there are any."""
        if self._nodes == 1:
            yield
            return
        token = secrets.token_hex(16)
        with _Server(root, token) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            self._folder.mkdir(parents=True, exist_ok=True)
            told = {"address": address_of(self.node), "port": server.server_address[1], "token": token}
            partial = self._folder / f"{self.node}.partial"
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(told, file)
            partial.rename(self._folder / f"{self.node}.json")
            try:
                yield
            finally:
                server.shutdown()

    def peers(self) -> list[Peer]:
        """The other nodes, when all have begun or enough time has gone by."""
        if self._nodes == 1:
            return []
        deadline = time.monotonic() + GATHER_SECONDS
        while len(self._told("json")) < self._nodes and time.monotonic() < deadline:
            time.sleep(0.1)
        nodes = sorted(self._told("json") - {self.node})
        return [Peer(node, **json.loads((self._folder / f"{node}.json").read_text())) for node in nodes]

    def end(self) -> None:
        """This node is through; returns when all are."""
        if self._nodes == 1:
            return
        (self._folder / f"{self.node}.ended").touch()
        spoke = time.monotonic()
        while len(ended := self._told("ended")) < self._nodes:
            if time.monotonic() - spoke > SPEAK_SECONDS:
                spoke = time.monotonic()
                self.say(f"through; waiting for {', '.join(sorted(self._told('json') - ended)) or 'the others'}")
            time.sleep(0.2)

    def _told(self, ending: str) -> set[str]:
        return {path.name.removesuffix(f".{ending}") for path in self._folder.glob(f"*.{ending}")}


class _Server(ThreadingTCPServer):
    """Whole files below a folder, from a byte on, for those who know the token."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, token: str) -> None:
        self.root, self.token = root, token
        super().__init__(("", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """The other side went away; it asks elsewhere."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SOCKET_SECONDS

    def do_GET(self) -> None:
        if not secrets.compare_digest(self.headers.get("Authorization", "").encode(), self.server.token.encode()):
            self.send_error(403)
            return
        path = self._path()
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if path is None or first is None:
            self.send_error(404)
            return
        with path.open("rb") as file:
            size, offset = os.fstat(file.fileno()).st_size, int(first[1])
            self.send_response(206)
            self.send_header("Content-Length", str(max(0, size - offset)))
            self.end_headers()
            if offset < size:
                self.wfile.flush()
                self.connection.sendfile(file, offset)

    def _path(self) -> Path | None:
        """The file that is asked for, if it may be given. Files behind links lie on other disks: let others read them there."""
        path = self.server.root / unquote(self.path).lstrip("/")
        inside = path.resolve().is_relative_to(self.server.root.resolve())
        return path if inside and path.is_file() and path.parent.name != PARTIAL else None

    def log_message(self, format: str, *args: object) -> None:
        pass


def address_of(node: str) -> str:
    """Where a node can be reached: names of nodes do not resolve everywhere, so Slurm is asked; where it is not at hand, as in
    a container, the name must do."""
    command = ["scontrol", "show", "node", node, "--oneliner"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return node
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else node
