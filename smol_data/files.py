"""The files of a token dataset folder, read by position: raw token ids and document ends, in one stream over all shards.

    folder/manifest.json + X.ds + X.ds.index  (datatrove)   --TokenFiles-->  tokens [first, first + count), document ends
    folder/manifest.json + X.bin + X.idx      (Megatron)    --/

Byte layouts, all little-endian. Tokens (`X.ds`, `X.bin`): raw ids of the manifest's dtype, no header. `X.ds.index`: uint64
document ends in tokens from the shard's start (exclusive), no header. `X.idx`: 9 bytes `MMIDIDX\\0\\0`, uint64 version 1, uint8
dtype code (8 uint16, 4 int32), uint64 sequences n, uint64 n + 1; then int32 lengths [n], int64 byte offsets [n], int64
document index [n + 1].

Nothing is kept in memory that grows with the tokens or the documents.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smol_data.manifest import DataError, FileEntry, Manifest
from smol_data.open_files import OpenFiles

INDEX_DTYPE = np.dtype("<u8")
IDX_HEADER = 34
"""Bytes before the lengths of a Megatron `.idx`."""

_INDEX_BLOCK = 512  # ends read at a time: one page of 4 KiB
_GUESSES = 4  # interpolated reads before the search halves; document lengths are random, so it is seldom left to halving


class TokenFiles:
    """A dataset folder's shards in the manifest's order, as one stream of tokens and one of document ends."""

    def __init__(self, folder: Path, manifest: Manifest, files: OpenFiles, name: str | None = None) -> None:
        """Opens nothing. `name` is the dataset's in messages (default: the folder's name)."""
        self.folder, self.manifest = folder, manifest
        self.name = name or folder.name
        self.shards = manifest.shards
        self.dtype = manifest.token_dtype
        self.starts = [0, *accumulate(shard.tokens or 0 for shard in self.shards)]
        """First token of each shard in the stream, and the number of all tokens."""
        self.document_starts = [0, *accumulate(shard.documents or 0 for shard in self.shards)]
        """Number of the first document of each shard, and the number of all documents."""
        self._files = files
        self._entries = {entry.name: entry for entry in manifest.files}
        self._paths = [str(folder / shard.name) for shard in self.shards]
        self._ends = [_Ends(self, shard) for shard in self.shards]

    @property
    def num_tokens(self) -> int:
        return self.starts[-1]

    def tokens(self, first: int, count: int) -> NDArray[Any]:
        """Tokens [first, first + count) of the stream, in the files' dtype; raises DataError where a file is cut short."""
        shard, offset = self.shard_at(first)
        if offset + count <= (self.shards[shard].tokens or 0):
            return self._tokens_of(shard, offset, count)
        parts = []
        while count:
            shard, offset = self.shard_at(first)
            parts.append(self._tokens_of(shard, offset, min(count, (self.shards[shard].tokens or 0) - offset)))
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def will_need(self, first: int, count: int) -> None:
        """Have the system read ahead for `tokens`; only the first shard's part, which is nearly always all of it."""
        shard, offset = self.shard_at(first)
        self._files.will_need(self._paths[shard], offset * self.dtype.itemsize, count * self.dtype.itemsize)

    def ends_between(self, after: int, upto: int) -> NDArray[np.int64]:
        """Document ends e of the stream with after < e <= upto, ascending, each once."""
        found = []
        shard, offset = self.shard_at(after)
        while after < upto:
            stop = min(upto, self.starts[shard + 1])
            found.append(self._ends[shard].between(offset, stop - self.starts[shard]) + self.starts[shard])
            shard, offset, after = shard + 1, 0, stop
        ends = found[0] if len(found) == 1 else np.concatenate(found)
        return ends if (np.diff(ends) > 0).all() else np.unique(ends)  # the end of a document without tokens stands twice

    def document_at(self, token: int) -> int:
        """Number of the document that holds a token of the stream, counted from 0 over all shards."""
        shard, offset = self.shard_at(token)
        return self.document_starts[shard] + self._ends[shard].first_after(offset)

    def document_ends(self, shard: int, first: int, count: int) -> NDArray[np.int64]:
        """Ends of documents [first, first + count) of a shard, in tokens from the shard's start."""
        return self._ends[shard].read(first, count)

    def shard_at(self, token: int) -> tuple[int, int]:
        """(shard number, offset in tokens from its start) of a token of the stream."""
        shard = bisect_right(self.starts, token) - 1
        return shard, token - self.starts[shard]

    def check_sizes(self) -> None:
        """Every file is there, as large as the manifest lists it and as its counts need; each index ends at the last token.

        Reads sizes and a few bytes of each index, no tokens. Raises DataError.
        """
        if self.num_tokens != self.manifest.tokens:
            raise DataError(
                f"dataset {self.name}: the shards sum to {self.num_tokens} tokens, but the manifest's total is "
                f"{self.manifest.tokens}; tokenise the text again"
            )
        for shard, ends in zip(self.shards, self._ends, strict=True):
            self._check_size(shard.name, (shard.tokens or 0) * self.dtype.itemsize)
            self._check_size(ends.file, ends.file_bytes)
            ends.check_header()
            last = int(ends.read(ends.count - 1, 1)[0]) if ends.count else 0
            if last != shard.tokens:
                raise DataError(
                    f"dataset {self.name}: {ends.file} ends at token {last}, but {shard.name} has "
                    f"{shard.tokens} tokens of {self.manifest.dtype}; the dtype is wrong or the files are not of "
                    "one run: tokenise the text again"
                )

    def read_items(self, path: str, dtype: np.dtype, offset: int, count: int) -> NDArray[Any]:
        """`count` items of a file of the folder from byte `offset` on."""
        data = self._files.read(path, offset, count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise DataError(
                f"dataset {self.name}: {path} has no bytes from {offset + len(data)} on, but the "
                f"manifest needs {count * dtype.itemsize - len(data)} more there; it was cut short while in use: copy it again"
            )
        return np.frombuffer(data, dtype=dtype)

    def _tokens_of(self, shard: int, offset: int, count: int) -> NDArray[Any]:
        return self.read_items(self._paths[shard], self.dtype, offset * self.dtype.itemsize, count)

    def _check_size(self, name: str, needed: int) -> None:
        path, entry = self.folder / name, self._entries.get(name)
        if entry is None:
            raise DataError(f"dataset {self.name}: {name} is not listed in the manifest; tokenise the text again")
        if not path.is_file():
            raise DataError(f"dataset {self.name}: {path} is missing; copy the folder again or tokenise the text again")
        if (size := path.stat().st_size) != entry.bytes:
            raise DataError(
                f"dataset {self.name}: {path} has {size} bytes, but its manifest says {entry.bytes}; it was cut short or "
                "changed: copy it again or tokenise the text again"
            )
        if entry.bytes != needed:
            raise DataError(
                f"dataset {self.name}: {path} has {entry.bytes} bytes, but its counts in the manifest with dtype "
                f"{self.manifest.dtype} need {needed}; dtype or counts are wrong: tokenise the text again"
            )


class _Ends:
    """The document ends of one shard, in tokens from its start, whichever of the two formats holds them."""

    def __init__(self, files: TokenFiles, shard: FileEntry) -> None:
        self._files, self._shard = files, shard
        self.count = shard.documents or 0
        self._megatron = shard.name.endswith(".bin")
        self.file = f"{shard.name.removesuffix('.bin')}.idx" if self._megatron else f"{shard.name}.index"
        self._path = str(files.folder / self.file)
        self.file_bytes = IDX_HEADER + 20 * self.count + 8 if self._megatron else INDEX_DTYPE.itemsize * self.count

    def read(self, first: int, count: int) -> NDArray[np.int64]:
        """Ends of documents [first, first + count)."""
        if not self._megatron:
            return self._files.read_items(self._path, INDEX_DTYPE, first * INDEX_DTYPE.itemsize, count).astype(np.int64)
        # The end of a document is the beginning of the next; the last one's is the size of the file.
        inner = min(count, self.count - 1 - first)
        begins = IDX_HEADER + 4 * self.count + 8 * (first + 1)
        ends = self._files.read_items(self._path, np.dtype("<i8"), begins, inner) // self._files.dtype.itemsize
        return ends if inner == count else np.append(ends, self._shard.tokens or 0)

    def first_after(self, token: int) -> int:
        """Number of the first document that ends behind `token`."""
        return self._search(token)[0]

    def between(self, after: int, upto: int) -> NDArray[np.int64]:
        """Ends e with after < e <= upto."""
        number, block = self._search(after)
        found = [block]
        while len(block) and block[-1] <= upto and number + len(block) < self.count:
            number += len(block)
            block = self.read(number, min(_INDEX_BLOCK, self.count - number))
            found.append(block)
        ends = found[0] if len(found) == 1 else np.concatenate(found)
        return ends[: np.searchsorted(ends, upto, side="right")]

    def _search(self, token: int) -> tuple[int, NDArray[np.int64]]:
        """The number of the first end behind `token`, and the ends of its block from it on.

        An interpolation search: ends grow nearly evenly, so few reads of a page find the place in an index of any length.
        """
        low, high = 0, self.count  # the first end behind `token` stands in [low, high)
        low_end, high_end = 0, self._shard.tokens or 0  # of documents low - 1 and high - 1
        guesses = 0
        while low < high:
            share = (token - low_end) / (high_end - low_end) if guesses < _GUESSES and high_end > low_end else 0.5
            first = min(max(low, low + int(share * (high - low)) - _INDEX_BLOCK // 2), max(low, high - _INDEX_BLOCK))
            block = self.read(first, min(_INDEX_BLOCK, high - first))
            if block[-1] <= token:
                low, low_end = first + len(block), int(block[-1])
            elif block[0] > token and first > low:
                high, high_end = first + 1, int(block[0])
            else:
                at = int(np.searchsorted(block, token, side="right"))
                return first + at, block[at:]
            guesses += 1
        return self.count, np.empty(0, dtype=np.int64)

    def check_header(self) -> None:
        """A `.idx` is of version 1, of the manifest's dtype, and every sequence of it is one document."""
        if not self._megatron:
            return
        data = self._files.read_items(self._path, np.dtype("u1"), 0, IDX_HEADER).tobytes()
        magic, version, code = data[:9], int.from_bytes(data[9:17], "little"), data[17]
        sequences, indices = (int.from_bytes(data[at : at + 8], "little") for at in (18, 26))
        expected = IDX_DTYPE_CODES[self._files.manifest.dtype]
        if (magic, version, code) != (IDX_MAGIC, 1, expected):
            raise DataError(
                f"dataset {self._files.name}: {self.file} begins with {magic!r}, version {version}, dtype code {code}, but a "
                f"Megatron index of {self._files.manifest.dtype} begins with {IDX_MAGIC!r}, 1, {expected}; write it again"
            )
        if (sequences, indices) != (self.count, self.count + 1):
            raise DataError(
                f"dataset {self._files.name}: {self.file} has {sequences} sequences in {indices - 1} documents, but the "
                f"manifest says {self.count} documents of one sequence each; preprocess again without --split-sentences"
            )


IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_DTYPE_CODES = {"uint16": 8, "uint32": 4}
"""Megatron's codes. It has none for uint32: ids below 2**31 are the same bytes as int32's, code 4."""
