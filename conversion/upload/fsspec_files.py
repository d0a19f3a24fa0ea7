"""Whatever fsspec opens: gs://, abfs://, file://, memory:// and, where its package is installed, much more."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from conversion import ConversionError, Unreachable
from conversion.upload.local_files import LocalFile
from smol_config import nearest


class FsspecFiles:
    """A folder in a file system of fsspec: objects.Objects."""

    def __init__(self, target: str) -> None:
        self.url = target.rstrip("/")
        match = re.fullmatch(r"([^:/]+)://.+", self.url)
        if not match:
            raise ConversionError(f"{target} is no URL of a folder; write one such as s3://bucket/prefix or file:///path")
        if match[1] not in (schemes := fsspec.available_protocols()):
            raise ConversionError(f"{target}: fsspec knows no {match[1]}://; {nearest(match[1], schemes)}")
        try:
            self._files, self._root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConversionError(f"{target} cannot be opened ({error}); install what it needs, or mend the URL") from error

    def sizes(self) -> dict[str, int]:
        self._files.invalidate_cache()
        found = self._ask(self._files.find, self._root, detail=True)
        return {path.removeprefix(f"{self._root}/"): int(entry["size"]) for path, entry in found.items()}

    def read(self, name: str) -> bytes | None:
        content: bytes = self._ask(self._files.cat_file, self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        self._ask(self._files.makedirs, self._root, exist_ok=True)
        self._ask(self._files.pipe_file, self._path(name), content)

    def send(self, files: Sequence[LocalFile]) -> None:
        for file in files:
            path = self._path(file.name)
            self._ask(self._files.makedirs, posixpath.dirname(path), exist_ok=True)
            self._ask(self._files.put_file, str(file.path), path)

    def fetch(self, sizes: Mapping[str, int], folder: Path) -> None:
        for name in sizes:
            self._ask(self._files.get_file, self._path(name), str(folder / name))

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            if self._ask(self._files.exists, self._path(name)):
                self._ask(self._files.rm_file, self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a call returns, with faults as sentences."""
        try:
            return call(*arguments, **options)
        except (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, NotImplementedError) as error:
            raise ConversionError(f"{self.url} cannot be used ({error!r}); mend the URL, or what you may do there") from error
        except Exception as error:  # each file system has exceptions of its own
            raise Unreachable(f"{self.url} cannot be reached ({error!r})") from error
