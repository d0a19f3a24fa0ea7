"""The lines of a text file, plain, gzip or zstd by its ending. Used by whatever reads JSON Lines."""

import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard


@contextmanager
def decompressed_lines(filepath: str) -> Iterator[Iterable[bytes]]:
    """The lines of a file, decompressed by its ending."""
    with Path(filepath).open("rb") as file:
        if filepath.endswith(".gz"):
            yield gzip.GzipFile(fileobj=file)
        elif filepath.endswith(".zst"):
            yield io.BufferedReader(_ZstdStream(file), buffer_size=2**20)
        else:
            yield file


class _ZstdStream(io.RawIOBase):
    """A zstd file of one frame or of many (made by `cat`, by parallel writers); a truncated one raises EOFError.

    zstandard's own reader ends without a word where the file ends, even in the middle of a frame.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._rest, self._text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            data = self._rest or self._file.read(2**17)
            self._rest = b""
            if not data:
                if self._frame:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._text = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._text))
        buffer[:count] = self._text[:count]
        self._text = self._text[count:]
        return count
