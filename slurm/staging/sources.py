"""Where datasets come from: a folder that all nodes see, or a prefix of S3.

A source copies one file at a time to a path that may already hold the beginning of it; whether the bytes are the right ones
is for fetch.py to find out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Protocol, TypeVar

from slurm.staging.needs import StagingError
from smol_config import UserError
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest

BLOCK = 2**24
"""Bytes read at a time: large enough for parallel file systems, small enough to stop soon."""
DELAYS = (5.0, 10.0, 20.0, 40.0, *[60.0] * 12)
"""Seconds before each further attempt at a source that does not answer: 13 minutes, besides what s5cmd waits itself."""

Result = TypeVar("Result")


class Silent(UserError):
    """A source that does not answer now; the same call may succeed later."""


class Patience:
    """Attempts that go on while a source is silent, of several threads at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._ended = Event()
        self._told = set[int]()

    def with_(self, attempt: Callable[[], Result]) -> Result:
        """What the attempt returns; raises Silent after the last one."""
        for number, delay in enumerate(DELAYS):
            try:
                return attempt()
            except Silent as error:
                if self._ended.is_set():
                    raise
                if number not in self._told:  # once for all threads
                    self._told.add(number)
                    self.say(f"{error}; next attempt in {delay:.0f} s")
                self._ended.wait(delay)
        return attempt()

    def end(self) -> None:
        """No further attempts."""
        self._ended.set()


class Source(Protocol):
    """A place that holds datasets under their names."""

    place: str
    """For messages."""

    def manifest(self, name: str) -> Manifest:
        """Of a dataset. Raises UserError where there is none or it is damaged, Silent where that cannot be found out."""

    def copy(self, name: str, entry: FileEntry, partial: Path) -> None:
        """A file of the dataset `name`, whole, in `partial`. Raises as manifest()."""


class Folder:
    """A folder that all nodes see."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def manifest(self, name: str) -> Manifest:
        path = self.root / name / MANIFEST_NAME
        with _reading(path):
            text = path.read_text(encoding="utf8", errors="replace")
        return parse_manifest(text, str(path))

    def copy(self, name: str, entry: FileEntry, partial: Path) -> None:
        path = self.root / name / entry.name
        with _reading(path):
            source = path.open("rb", buffering=0)
        with source, partial.open("ab") as target:
            source.seek(target.tell())
            while True:
                with _reading(path):
                    block = source.read(BLOCK)
                if not block:
                    return
                target.write(block)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the source, which those of the node's own disk must not be taken for."""
    try:
        yield
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        why = f"{path} cannot be read ({error.strerror}); mend SMOL_DATA_SOURCE, or put the dataset there"
        raise StagingError(why) from error
    except OSError as error:
        raise Silent(f"{path} cannot be read ({error.strerror})") from error


class S3:
    """A prefix of a bucket, read by s5cmd. A file that was broken off begins anew: its parts come in any order."""

    def __init__(self, url: str) -> None:
        # Imported here: clusters without S3 need no s5cmd.
        from conversion.upload.s5cmd import S5cmd

        self._open = S5cmd
        self.place = S5cmd(url).url

    def manifest(self, name: str) -> Manifest:
        where = f"{self.place}/{name}/{MANIFEST_NAME}"
        with _asking_s3():
            content = self._open(f"{self.place}/{name}").read(MANIFEST_NAME)
        if content is None:
            raise StagingError(f"{where} is not there; mend SMOL_DATA_SOURCE, or copy the dataset there")
        return parse_manifest(content.decode(errors="replace"), where)

    def copy(self, name: str, entry: FileEntry, partial: Path) -> None:
        with _asking_s3():
            self._open(f"{self.place}/{name}").fetch({entry.name: entry.bytes}, partial.parent)


@contextmanager
def _asking_s3() -> Iterator[None]:
    from conversion import Unreachable

    try:
        yield
    except Unreachable as error:
        raise Silent(str(error)) from error


def open_source(text: str) -> Folder | S3:
    """SMOL_DATA_SOURCE. Raises UserError where it cannot be one."""
    if text.startswith("s3://"):
        return S3(text)
    if not Path(text).is_dir():
        raise StagingError(f"SMOL_DATA_SOURCE={text} is no folder here; give one that all nodes see, or s3://BUCKET/PREFIX")
    return Folder(Path(text))
