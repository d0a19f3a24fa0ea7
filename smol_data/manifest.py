"""`manifest.json`: what a token dataset folder holds and by which tokenizer it was made.

Written once by data_tools after all shards are whole; read by every consumer. Nothing is guessed from file sizes or
names: dtype, vocabulary, end-of-document id and the SHA-256 of every file stand here. Beside it lie datatrove's files
(`*.ds`, `*.ds.index`, `*.ds.metadata`) or Megatron's (`*.bin`, `*.idx`); smol_data.files gives their layout.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from smol_config import Section, UserError
from smol_files import write_whole

MANIFEST_NAME = "manifest.json"


class DataError(UserError):
    """Token data that is missing, damaged or not what the configuration says it is."""


class TokenizerIdentity(Section):
    """Which tokenizer made the ids."""

    name: str
    """Folder or Hub name as it was given when the text was tokenised."""
    sha256: str
    """Of its tokenizer.json: the identity that counts; the name only tells people where it came from."""


class FileEntry(Section):
    """One file of the folder."""

    name: str
    bytes: NonNegativeInt
    sha256: str
    tokens: NonNegativeInt | None = None
    """For shards (`*.ds`, `*.bin`) only."""
    documents: NonNegativeInt | None = None
    """For shards (`*.ds`, `*.bin`) only."""


class Manifest(Section):
    """The identity of a token dataset."""

    version: Literal[1] = 1
    tokenizer: TokenizerIdentity
    vocab_size: int = Field(gt=0, le=2**31)
    """Ids are below this; the tokenizer's size with its added tokens."""
    dtype: Literal["uint16", "uint32"]
    eos_id: NonNegativeInt | None = None
    """Last token of every document; null when the tokenisation added none and only the index tells documents apart."""
    eos_ends_documents: bool = False
    """The EOS id stands at the end of every document and nowhere else (chunks of an offline shuffle end without one too): a
    window's documents can be read off its tokens, and its index need not be read. The writer of the manifest has checked it."""
    seed: NonNegativeInt | None = None
    """Seed of the document shuffle at tokenisation; null when documents stand in input order."""
    window_tokens: PositiveInt | None = None
    """Set when the folder was shuffled offline into chunks of this many tokens (sequence length + 1)."""
    tokens: NonNegativeInt
    documents: NonNegativeInt
    files: list[FileEntry]
    """Sorted by name; the shards in this order make up the token stream."""

    @property
    def shards(self) -> list[FileEntry]:
        """The files of ids, in stream order."""
        return [entry for entry in self.files if entry.name.endswith((".ds", ".bin"))]

    @property
    def token_dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides which tokens the dataset holds, and in which order."""
        parts = [self.dtype, str(self.window_tokens), self.tokenizer.sha256, *(f"{e.name}:{e.sha256}" for e in self.files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the manifest atomically; call it last, since a folder with a manifest counts as whole."""
        write_whole(folder / MANIFEST_NAME, self.model_dump_json(indent=2) + "\n")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a token dataset folder; raises DataError when there is none or it is damaged."""
    path = Path(folder) / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf8")
    except OSError as error:
        remedy = "make the dataset with `python -m data_tools tokenize`"
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, where: str) -> Manifest:
    """A manifest from its text, read at `where`; raises DataError when it is damaged."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{where} is damaged: {at}: {first['msg']}; tokenise the text again") from error


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_sha256(tokenizer: str | Path) -> str | None:
    """SHA-256 of a tokenizer folder's tokenizer.json; None when `tokenizer` is not a local folder (a Hub name)."""
    path = Path(tokenizer) / "tokenizer.json"
    return sha256_of_file(path) if path.is_file() else None
