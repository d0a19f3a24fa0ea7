"""Read-only views of token datasets: a folder of datatrove shards as one stream, cut into fixed windows.

    folder/manifest.json + *.ds + *.ds.index  --TokenDataset.window(w)-->  Window(tokens, document_ends)  --> batch.pack

Byte layout: `X.ds` holds raw little-endian token ids (uint16 or uint32, as the manifest says) with no header;
`X.ds.index` holds one uint64 per document, its end in tokens (exclusive) from the shard's start. The shards in the
manifest's order make up one stream of N tokens. Windows cross shard files; documents do not.

Reading is by `os.pread`: on cold pages one read of a window is about 2.6 times as fast as the page faults of a memory
map, and file systems that refuse to map many files work too. Nothing is kept in memory that grows with the tokens or the
documents. A dataset object serves one thread at a time; a forked child may go on reading, since pread moves no position.
"""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smol_data.manifest import DataError, FileEntry, read_manifest, tokenizer_sha256

_INDEX_DTYPE = np.dtype("<u8")
_INDEX_BLOCK = 512  # ends read at a time: one page of 4 KiB, so the last 9 steps of a binary search cost one read
_OPEN_FILES = 16  # per dataset: 46 datasets stay well below the usual limit of 1024 descriptors


class Window(NamedTuple):
    """A training window: S inputs and, shifted by one, S targets."""

    tokens: NDArray[np.int64]
    """[S + 1]"""
    document_ends: NDArray[np.int32]
    """Ends e (exclusive, from the window's start, ascending) with 0 < e <= S: token e is the first of another document."""


class TokenDataset:
    """The windows of one dataset folder for a sequence length S.

    A stream of N tokens has floor((N - 1) / S) windows; window w is tokens [w*S, w*S + S + 1), so neighbours overlap by
    one token and no target is lost. A folder that was shuffled offline into chunks (`window_tokens` in its manifest) has
    its chunks of S + 1 tokens as windows. Opening reads the manifest, the file sizes and eight bytes of each index.
    """

    def __init__(self, folder: str | Path, sequence_length: int, name: str | None = None) -> None:
        """Raises DataError when a file is missing, cut short or of another dtype, or there is not one whole window."""
        self.folder = Path(folder)
        self.name = name or self.folder.name
        self.sequence_length = sequence_length
        self.manifest = read_manifest(folder)
        self._files = _OpenFiles(self.folder, _OPEN_FILES)
        self._dtype = self.manifest.token_dtype
        self._shards = self.manifest.shards
        self._starts = [0, *accumulate(_tokens(shard) for shard in self._shards)]
        self.num_tokens = self._starts[-1]
        self._check_files()

        chunk = self.manifest.window_tokens
        if chunk is not None and chunk != sequence_length + 1:
            raise DataError(
                f"dataset {self.name}: data.sequence_length={sequence_length}, but {self.folder} was shuffled offline into "
                f"chunks of {chunk} tokens; set data.sequence_length={chunk - 1} or tokenise again without a chunk shuffle"
            )
        self._stride = chunk or sequence_length
        self.num_windows = self.num_tokens // chunk if chunk else (self.num_tokens - 1) // sequence_length
        if self.num_windows < 1:
            raise DataError(
                f"dataset {self.name}: {self.folder} has {self.num_tokens} tokens, fewer than one window of "
                f"data.sequence_length={sequence_length} plus one; give it more text or shorten the sequences"
            )

    def window(self, index: int) -> Window:
        """Window `index` of 0 .. num_windows - 1; raises DataError on an id outside the vocabulary or a file cut short."""
        if not 0 <= index < self.num_windows:
            raise IndexError(f"dataset {self.name} has windows 0 to {self.num_windows - 1}, not {index}")
        first = index * self._stride
        tokens = np.empty(self.sequence_length + 1, dtype=np.int64)
        ends: list[NDArray[np.uint64]] = []
        filled = 0
        while filled < len(tokens):
            shard, offset = self.shard_at(first + filled)
            count = min(len(tokens) - filled, _tokens(self._shards[shard]) - offset)
            tokens[filled : filled + count] = self._read(self._shards[shard].name, self._dtype, offset, count)
            upto = offset + min(count, self.sequence_length - filled)
            ends.append(self._ends_between(shard, offset, upto) + np.uint64(self._starts[shard]))
            filled += count
        self._check_ids(tokens, first)
        # unique: an index may list a document without tokens, whose end stands twice.
        return Window(tokens, np.unique((np.concatenate(ends) - np.uint64(first)).astype(np.int32)))

    def shard_at(self, token: int) -> tuple[int, int]:
        """(shard number, offset in tokens from its start) of a token of the stream."""
        shard = bisect_right(self._starts, token) - 1
        return shard, token - self._starts[shard]

    def close(self) -> None:
        """Close the shard files; they open again when a window is read."""
        self._files.close()

    def _check_files(self) -> None:
        entries = {entry.name: entry for entry in self.manifest.files}
        if self.num_tokens != self.manifest.tokens:
            raise DataError(
                f"dataset {self.name}: the shards sum to {self.num_tokens} tokens, but the manifest's total is "
                f"{self.manifest.tokens}; tokenise the text again"
            )
        for shard in self._shards:
            self._check_size(shard.name, shard.bytes, _tokens(shard) * self._dtype.itemsize)
            index = entries.get(f"{shard.name}.index")
            documents = shard.documents or 0
            self._check_size(f"{shard.name}.index", index.bytes if index else -1, documents * _INDEX_DTYPE.itemsize)
            last = int(self._read(f"{shard.name}.index", _INDEX_DTYPE, documents - 1, 1)[0]) if documents else 0
            if last != _tokens(shard):
                raise DataError(
                    f"dataset {self.name}: {shard.name}.index ends at token {last}, but {shard.name} has "
                    f"{_tokens(shard)} tokens of {self.manifest.dtype}; the dtype is wrong or the files are not of "
                    "one run: tokenise the text again"
                )

    def _check_size(self, name: str, listed: int, needed: int) -> None:
        """The file is there, as large as the manifest lists it, and as large as its tokens or documents need."""
        path = self.folder / name
        if listed < 0:
            raise DataError(f"dataset {self.name}: {name} is not listed in the manifest; tokenise the text again")
        if not path.is_file():
            raise DataError(f"dataset {self.name}: {path} is missing; copy the folder again or tokenise the text again")
        if (size := path.stat().st_size) != listed:
            raise DataError(
                f"dataset {self.name}: {path} has {size} bytes, but its manifest says {listed}; it was cut short or changed: "
                "copy it again or tokenise the text again"
            )
        if listed != needed:
            raise DataError(
                f"dataset {self.name}: {path} has {listed} bytes, but its counts in the manifest with dtype "
                f"{self.manifest.dtype} need {needed}; dtype or counts are wrong: tokenise the text again"
            )

    def _check_ids(self, tokens: NDArray[np.int64], first: int) -> None:
        if tokens.max() < self.manifest.vocab_size:
            return
        at = int(np.argmax(tokens >= self.manifest.vocab_size))
        shard, offset = self.shard_at(first + at)
        raise DataError(
            f"dataset {self.name}: {self._shards[shard].name} has id {tokens[at]} at token {offset}, but the manifest's "
            f"vocab_size is {self.manifest.vocab_size}; run `python -m data_tools verify {self.folder}` and tokenise again"
        )

    def _ends_between(self, shard: int, after: int, upto: int) -> NDArray[np.uint64]:
        """Document ends e of a shard with after < e <= upto, in tokens from the shard's start."""
        name, documents = f"{self._shards[shard].name}.index", self._shards[shard].documents or 0
        low, high = 0, documents  # the first end behind `after` stands in [low, high): a binary search down to one block
        while high - low > _INDEX_BLOCK:
            middle = (low + high) // 2
            if self._read(name, _INDEX_DTYPE, middle, 1)[0] <= after:
                low = middle + 1
            else:
                high = middle + 1
        found = [np.empty(0, dtype=np.uint64)]
        while low < documents:
            block = self._read(name, _INDEX_DTYPE, low, min(_INDEX_BLOCK, documents - low))
            found.append(block[(block > after) & (block <= upto)])
            if block[-1] > upto:
                break
            low += len(block)
        return np.concatenate(found)

    def _read(self, name: str, dtype: np.dtype, first: int, count: int) -> NDArray[Any]:
        """`count` items of a file from item `first` on."""
        data = os.pread(self._files.descriptor(name), count * dtype.itemsize, first * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise DataError(
                f"dataset {self.name}: {self.folder / name} has no bytes from {first * dtype.itemsize + len(data)} on, but the "
                f"manifest needs {count * dtype.itemsize - len(data)} more there; it was cut short while in use: copy it again"
            )
        return np.frombuffer(data, dtype=dtype)


def open_datasets(
    folders: Mapping[str, str], sequence_length: int, tokenizer: str, vocab_size: int | None = None
) -> dict[str, TokenDataset]:
    """Open datasets (name: folder) and check that one tokenizer made them all and that the model's vocabulary holds it.

    `tokenizer` is data.tokenizer: a local folder is compared by the SHA-256 of its tokenizer.json, a Hub name by name.
    Raises DataError, having closed what was open.
    """
    datasets: dict[str, TokenDataset] = {}
    try:
        for name, folder in folders.items():
            datasets[name] = TokenDataset(folder, sequence_length, name)
        _check_tokenizer(list(datasets.values()), tokenizer)
        for name, dataset in datasets.items():
            if vocab_size is not None and dataset.manifest.vocab_size > vocab_size:
                raise DataError(
                    f"dataset {name} has a vocabulary of {dataset.manifest.vocab_size} ids, but model.vocab_size={vocab_size}; "
                    f"set model.vocab_size to at least {dataset.manifest.vocab_size}"
                )
    except DataError:
        for dataset in datasets.values():
            dataset.close()
        raise
    return datasets


def _check_tokenizer(datasets: list[TokenDataset], tokenizer: str) -> None:
    expected = tokenizer_sha256(tokenizer)
    for dataset in datasets:
        made_by = dataset.manifest.tokenizer
        if expected is None and made_by.name != tokenizer:
            raise DataError(
                f"dataset {dataset.name} was made by tokenizer {made_by.name!r}, but data.tokenizer={tokenizer!r}; name the "
                f"same one, or set data.tokenizer to a local folder whose tokenizer.json has SHA-256 {made_by.sha256}"
            )
        wanted = expected or datasets[0].manifest.tokenizer.sha256
        if made_by.sha256 != wanted:
            whose = f"data.tokenizer={tokenizer!r}" if expected else f"the tokenizer of dataset {datasets[0].name}"
            raise DataError(
                f"dataset {dataset.name} was made by tokenizer {made_by.name!r} with SHA-256 {made_by.sha256}, but {whose} has "
                f"{wanted}; tokenise the dataset again with the run's tokenizer"
            )


def _tokens(shard: FileEntry) -> int:
    return shard.tokens or 0


class _OpenFiles:
    """Descriptors of a folder's files, opened at first use; the one idle longest is closed when there are too many."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._open: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, name: str) -> int:
        if name not in self._open:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(name)
        return self._open[name]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
