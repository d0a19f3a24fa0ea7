"""The files of a folder that is to be uploaded, each hashed once."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conversion import ConversionError
from smol_console import Progress


@dataclass(frozen=True)
class LocalFile:
    """One file; its hashes are computed when they are first asked for."""

    name: str
    """Path below the folder, with slashes: its name at the place."""
    path: Path
    size: int
    """Bytes."""

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal; raises ConversionError when the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(self.path, error) from error

    @cached_property
    def git_blob(self) -> str:
        """What git calls the file's content, hexadecimal. For small files: it is read into memory."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise unreadable(self.path, error) from error
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def local_files(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[LocalFile]:
    """All files below `folder` whose name is `wanted`, by name, links followed; raises ConversionError where there are none."""
    if not folder.is_dir():
        raise ConversionError(f"{folder} is not a folder; give one that is there")
    names = ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if not path.is_dir())
    try:
        files = [LocalFile(name, path, path.stat().st_size) for name, path in names if wanted(name)]
    except OSError as error:  # a link to nowhere
        raise ConversionError(f"{folder}: {error.filename} cannot be read ({error.strerror}); mend or remove it") from error
    if not files:
        raise ConversionError(f"{folder} holds no files to upload; give another folder")
    return files


def hash_all(files: Sequence[LocalFile]) -> None:
    """Compute the SHA-256 of every file, several at a time, telling how it goes."""
    size = sum(file.size for file in files)
    with Progress("hashing", "B", size) as progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for file, _ in zip(files, threads.map(lambda file: file.sha256, files), strict=True):
            progress.advance(file.size)


def unreadable(path: object, error: OSError) -> ConversionError:
    """What is said of a file that was there when the upload began."""
    return ConversionError(f"{path} cannot be read ({error.strerror or error}); let nothing change the folder while it is sent")
