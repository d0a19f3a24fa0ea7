"""How a shard's files are written: hashed on the way, so that no second pass is needed; and datatrove's note beside them.

Used by `tokenize` (shard_writer.py) and `shuffle` (chunk_runs.py).
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from smol_data.manifest import FileEntry


@dataclass
class HashedFile:
    """A file that is hashed while it is written. Leaving the block flushes it to the disk, which may refuse as late as that."""

    path: Path
    _hash: Any = field(default_factory=hashlib.sha256, init=False)
    _bytes: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def write(self, data: Any) -> None:
        """Append bytes, or those of a contiguous array."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # a view with an empty axis cannot be cast
        self._file.write(view)
        self._hash.update(view)
        self._bytes += view.nbytes

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def entry(self, **counts: int) -> FileEntry:
        """Name, size and hash; `counts` are a shard's tokens and documents."""
        return FileEntry(name=self.path.name, bytes=self._bytes, sha256=self._hash.hexdigest(), **counts)


def metadata_note(tokenizer_sha256: str, token_size: int, tokens: int) -> bytes:
    """The content of `X.ds.metadata`: three lines, `sha256:TOKENIZER|bytes per id`, token count, the count for people."""
    import humanize

    return f"sha256:{tokenizer_sha256}|{token_size}\n{tokens}\n{humanize.metric(tokens, unit='T')}".encode()
