"""Read-only views of token datasets: a folder of shards as one stream, cut into fixed windows.

    folder --files.TokenFiles--> stream of tokens --TokenDataset.window(w)--> Window(tokens, document_ends) --> batch.pack

The shards in the manifest's order make up one stream of N tokens. Windows cross shard files; documents do not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smol_data.files import TokenFiles
from smol_data.manifest import DataError, read_manifest, tokenizer_sha256
from smol_data.open_files import OpenFiles


class Window(NamedTuple):
    """A training window: S inputs and, shifted by one, S targets."""

    tokens: NDArray[Any]
    """[S + 1], in the shards' uint16 or uint32; read-only"""
    document_ends: NDArray[np.int32]
    """Ends e (exclusive, from the window's start, ascending) with 0 < e <= S: token e is the first of another document."""


class TokenDataset:
    """The windows of one dataset folder for a sequence length S.

    A stream of N tokens has floor((N - 1) / S) windows; window w is tokens [w*S, w*S + S + 1), so neighbours overlap by
    one token and no target is lost. A folder that was shuffled offline into chunks (`window_tokens` in its manifest) has
    its chunks of S + 1 tokens as windows. Opening reads the manifest, the file sizes and eight bytes of each index.
    """

    def __init__(
        self, folder: str | Path, sequence_length: int, name: str | None = None, files: OpenFiles | None = None
    ) -> None:
        """`files` is the pool of descriptors that several datasets share (default: one of its own).

        Raises DataError when a file is missing, cut short or of another dtype, or there is not one whole window.
        """
        self.folder = Path(folder)
        self.name = name or self.folder.name
        self.sequence_length = sequence_length
        self.manifest = read_manifest(folder)
        self._open_files = files or OpenFiles()
        self.files = TokenFiles(self.folder, self.manifest, self._open_files, self.name)
        self.files.check_sizes()

        chunk = self.manifest.window_tokens
        if chunk is not None and chunk != sequence_length + 1:
            raise DataError(
                f"dataset {self.name}: data.sequence_length={sequence_length}, but {self.folder} was shuffled offline into "
                f"chunks of {chunk} tokens; set data.sequence_length={chunk - 1} or tokenise again without a chunk shuffle"
            )
        self.stride = chunk or sequence_length
        """Tokens from the start of one window to that of the next."""
        self.num_tokens = self.files.num_tokens
        self.num_windows = self.num_tokens // chunk if chunk else (self.num_tokens - 1) // sequence_length
        if self.num_windows < 1:
            raise DataError(
                f"dataset {self.name}: {self.folder} has {self.num_tokens} tokens, fewer than one window of "
                f"data.sequence_length={sequence_length} plus one; give it more text or shorten the sequences"
            )

    def window(self, index: int) -> Window:
        """Window `index` of 0 .. num_windows - 1; raises DataError on an id outside the vocabulary or a file cut short."""
        first = self._first_token(index)
        tokens = self.files.tokens(first, self.sequence_length + 1)
        self._check_ids(tokens, first)
        if self.manifest.eos_ends_documents:
            ends = (tokens[:-1] == self.manifest.eos_id).nonzero()[0] + 1
        else:
            ends = self.files.ends_between(first, first + self.sequence_length) - first
        return Window(tokens, ends.astype(np.int32))

    def will_need(self, index: int) -> None:
        """Have the system read a window ahead, so that a slow disk works on many windows at a time."""
        self.files.will_need(self._first_token(index), self.sequence_length + 1)

    def close(self) -> None:
        """Close the shard files; they open again when a window is read."""
        self._open_files.close()

    def _first_token(self, index: int) -> int:
        if not 0 <= index < self.num_windows:
            raise IndexError(f"dataset {self.name} has windows 0 to {self.num_windows - 1}, not {index}")
        return index * self.stride

    def _check_ids(self, tokens: NDArray[Any], first: int) -> None:
        if int(tokens.max()) < self.manifest.vocab_size:
            return
        at = int(np.argmax(tokens >= self.manifest.vocab_size))
        shard, offset = self.files.shard_at(first + at)
        raise DataError(
            f"dataset {self.name}: {self.files.shards[shard].name} has id {tokens[at]} at token {offset}, but the manifest's "
            f"vocab_size is {self.manifest.vocab_size}; run `python -m data_tools verify {self.folder}` and tokenise again"
        )


def open_datasets(
    folders: Mapping[str, str],
    sequence_length: int,
    tokenizer: str,
    vocab_size: int | None = None,
    files: OpenFiles | None = None,
) -> dict[str, TokenDataset]:
    """Open datasets (name: folder) and check that one tokenizer made them all and that the model's vocabulary holds it.

    They share one pool of descriptors (`files`, or one of their own), which is closed with any of them. `tokenizer` is
    data.tokenizer: a local folder is compared by the SHA-256 of its tokenizer.json, a Hub name by name. Raises DataError,
    having closed what was open.
    """
    files = files or OpenFiles()
    datasets: dict[str, TokenDataset] = {}
    try:
        for name, folder in folders.items():
            datasets[name] = TokenDataset(folder, sequence_length, name, files)
        _check_tokenizer(list(datasets.values()), tokenizer)
        for name, dataset in datasets.items():
            if vocab_size is not None and dataset.manifest.vocab_size > vocab_size:
                raise DataError(
                    f"dataset {name} has a vocabulary of {dataset.manifest.vocab_size} ids, but model.vocab_size={vocab_size}; "
                    f"set model.vocab_size to at least {dataset.manifest.vocab_size}"
                )
    except DataError:
        files.close()
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
