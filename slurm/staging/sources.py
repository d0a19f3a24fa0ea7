"""Where datasets come from: a folder that all nodes see, or a prefix of S3.

A source copies one file at a time into a .partial file that may already hold the beginning of it; whether the bytes are the
right ones is for fetch.py to find out.
"""

from io import FileIO
from pathlib import Path
from typing import Protocol

from slurm.staging.needs import StagingError
from smol_config import UserError
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest

BLOCK = 2**24
"""Bytes read at a time: large enough for parallel file systems, small enough to stop soon."""


class Silent(UserError):
    """A source that does not answer now; the same call may succeed later."""


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
        try:
            return parse_manifest(path.read_text(encoding="utf8"), str(path))
        except OSError as error:
            raise _unread(path, error) from error

    def copy(self, name: str, entry: FileEntry, partial: Path) -> None:
        path = self.root / name / entry.name
        try:
            source = path.open("rb", buffering=0)
        except OSError as error:
            raise _unread(path, error) from error
        with source, partial.open("ab") as target:
            source.seek(target.tell())
            while block := self._read(source, path):
                target.write(block)

    def _read(self, source: FileIO, path: Path) -> bytes:
        try:
            return source.read(BLOCK) or b""
        except OSError as error:
            raise _unread(path, error) from error


def _unread(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return StagingError(f"{path} cannot be read ({error.strerror}); mend SMOL_DATA_SOURCE, or put the dataset there")
    return Silent(f"{path} cannot be read ({error.strerror})")


class S3:
    """A prefix of a bucket, read by s5cmd. A file that was broken off begins anew: its parts come in any order."""

    def __init__(self, url: str) -> None:
        # Imported here: clusters without S3 need no s5cmd.
        from conversion import Unreachable
        from conversion.upload.s5cmd import S5cmd

        self._objects, self._unreachable = S5cmd(url), Unreachable
        self.place = self._objects.url

    def manifest(self, name: str) -> Manifest:
        where = f"{self.place}/{name}/{MANIFEST_NAME}"
        try:
            content = self._objects.read(f"{name}/{MANIFEST_NAME}")
        except self._unreachable as error:
            raise Silent(str(error)) from error
        if content is None:
            raise StagingError(f"{where} is not there; mend SMOL_DATA_SOURCE, or copy the dataset there")
        return parse_manifest(content.decode(errors="replace"), where)

    def copy(self, name: str, entry: FileEntry, partial: Path) -> None:
        for left in partial.parent.glob(f"{partial.name}[0-9]*"):  # by an s5cmd that was killed
            left.unlink()
        try:
            self._objects.fetch(f"{name}/{entry.name}", partial, entry.bytes)
        except self._unreachable as error:
            raise Silent(str(error)) from error


def open_source(text: str) -> Folder | S3:
    """SMOL_DATA_SOURCE. Raises UserError where it cannot be one."""
    if text.startswith("s3://"):
        return S3(text)
    if not Path(text).is_dir():
        raise StagingError(f"SMOL_DATA_SOURCE={text} is no folder here; give one that all nodes see, or s3://BUCKET/PREFIX")
    return Folder(Path(text))
