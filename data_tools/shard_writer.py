"""Documents to one token shard: tokenised, EOS appended, shuffled by a seed, hashed while written. One worker makes one shard.

    documents -> batches -> ids -> repetition rule -> the shard in input order -> its shuffled copy:

        X.ds            ids, little-endian uint16 or uint32
        X.ds.index      uint64 document ends in tokens (exclusive)
        X.ds.metadata   three lines: `sha256:TOKENIZER|bytes per id`, token count, the count for people
        X.ds.flags      with `--repetition flag` only: uint8 per document in the index's order, bit 0: repetitive

The first three are byte for byte what datatrove's DocumentTokenizer writes with the same seed, so its readers serve too. It
is not used itself because it takes a special token's name inside a text for the token (a text about tokenizers would end its
own document), needs offsets that nobody reads, and leaves the hash to another pass. In memory stay one batch and 25 bytes for
each document of the shard.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_tools.repetition import RepetitionRule, repetitive_documents
from data_tools.shard_files import HashedFile, metadata_note
from data_tools.tokenizer_file import TokenizerFile
from smol_data.files import INDEX_DTYPE
from smol_data.manifest import FileEntry

REPETITIVE = 1
"""Bit of a document's flags."""

_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 4_000_000  # an encoding holds about 100 bytes a token until its batch is written
_COPY_BYTES = 2**23


@dataclass(frozen=True)
class Shard:
    """What was written."""

    files: list[FileEntry]
    """Empty when there was no document."""
    repetitive_documents: int
    repetitive_tokens: int
    """Their EOS tokens included."""
    eos_inside: bool
    """Whether the EOS id also stands where no document ends."""


class ShardWriter:
    """Writes shard `name` into `folder`; equal texts, tokenizer, seed and rule give equal bytes."""

    def __init__(self, folder: Path, name: str, tokenizer: TokenizerFile, seed: int, rule: RepetitionRule) -> None:
        self.folder, self.name, self.source, self.seed, self.rule = folder, name, tokenizer, seed, rule
        self.dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        self._lengths: list[NDArray[np.int64]] = []
        self._flags: list[NDArray[np.uint8]] = []
        self._repetitive_tokens = 0
        self._eos_inside = False

    def write(self, texts: Iterable[str]) -> Shard:
        """Write all texts, none of them empty; raises OSError when the disk refuses."""
        unshuffled = self.folder / f"{self.name}.unshuffled"
        tokenizer = self._load()
        with unshuffled.open("wb") as file:
            for batch in _batches(texts):
                self._write_batch(file, tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        flags = np.concatenate([np.empty(0, np.uint8), *self._flags])
        files = self._write_shuffled(unshuffled, lengths, flags) if len(lengths) else []
        unshuffled.unlink()
        return Shard(files, int((flags & REPETITIVE).sum()), self._repetitive_tokens, self._eos_inside)

    def _load(self) -> Tokenizer:
        """The tokenizer without the truncation and padding its file may ask for; names of special tokens stay plain text."""
        tokenizer = Tokenizer.from_file(str(self.source.file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _write_batch(self, file: Any, encodings: list[Any]) -> None:
        lengths = np.array([len(encoding) + 1 for encoding in encodings], dtype=np.int64)
        ends = np.cumsum(lengths)
        ids = np.empty(int(ends[-1]), dtype=self.dtype)
        for end, length, encoding in zip(ends.tolist(), lengths.tolist(), encodings, strict=True):
            ids[end - length : end - 1] = encoding.ids
        ids[ends - 1] = self.source.eos_id
        self._eos_inside |= int(np.count_nonzero(ids == self.source.eos_id)) > len(ends)
        repetitive = repetitive_documents(ids, ends, self.rule.period, self.rule.count)
        self._repetitive_tokens += int(lengths[repetitive].sum())
        self._flags.append(repetitive * np.uint8(REPETITIVE))
        if self.rule.action == "drop" and repetitive.any():
            ids = ids[np.repeat(~repetitive, lengths)]
            lengths = lengths[~repetitive]
        self._lengths.append(lengths)
        file.write(ids)

    def _write_shuffled(self, unshuffled: Path, lengths: NDArray[np.int64], flags: NDArray[np.uint8]) -> list[FileEntry]:
        order = np.random.default_rng(self.seed).permutation(len(lengths))
        size = self.dtype.itemsize
        starts = (np.cumsum(lengths) - lengths)[order] * size
        sizes = lengths[order] * size
        tokens = int(lengths.sum())
        with unshuffled.open("rb") as source, HashedFile(self.folder / f"{self.name}.ds") as shard:
            for block in _blocks(sizes):
                pairs = zip(starts[block].tolist(), sizes[block].tolist(), strict=True)
                shard.write(b"".join([os.pread(source.fileno(), length, start) for start, length in pairs]))
        with HashedFile(self.folder / f"{self.name}.ds.index") as index:
            index.write(np.cumsum(lengths[order]).astype(INDEX_DTYPE))
        with HashedFile(self.folder / f"{self.name}.ds.metadata") as metadata:
            metadata.write(metadata_note(self.source.sha256, size, tokens))
        files = [shard.entry(tokens=tokens, documents=len(lengths)), index.entry(), metadata.entry()]
        if self.rule.action == "flag":
            with HashedFile(self.folder / f"{self.name}.ds.flags") as flagged:
                flagged.write(flags[order])
            files.append(flagged.entry())
        return files


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts together as long as they are few and short enough; a longer one is a batch of its own."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == _BATCH_DOCUMENTS or characters + len(text) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _blocks(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Neighbouring documents that together hold about _COPY_BYTES."""
    first = 0
    bounds = np.cumsum(sizes)
    while first < len(sizes):
        before = int(bounds[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(bounds, before + _COPY_BYTES, side="right")))
        yield slice(first, last)
        first = last
