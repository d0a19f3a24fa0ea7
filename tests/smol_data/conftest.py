"""Tiny token datasets of real text: docstrings of Python's own modules, one token a byte, in datatrove's layout."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from smol_data.manifest import FileEntry, Manifest, TokenizerIdentity, sha256_of_file

EOS = 256
VOCAB_SIZE = 257
MODULES = [
    "argparse",
    "collections",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "heapq",
    "json",
    "random",
    "statistics",
    "textwrap",
]


@functools.cache
def documents() -> list[np.ndarray]:
    """A document per docstring: its UTF-8 bytes and the end-of-document id."""
    texts = []
    for name in MODULES:
        module = importlib.import_module(name)
        members = [value for value in vars(module).values() if inspect.getmodule(value) is module]
        texts += [inspect.getdoc(value) or "" for value in [module, *members]]
    return [np.array([*text.encode(), EOS]) for text in texts if text]


@pytest.fixture(name="docs")
def documents_fixture() -> list[np.ndarray]:
    return documents()


@dataclasses.dataclass
class Made:
    """A dataset on disk and, for comparison, all it holds."""

    folder: Path
    tokens: np.ndarray
    ends: np.ndarray
    """Document ends in the whole stream."""


Maker = Callable[..., Made]


@pytest.fixture
def make_dataset(tmp_path: Path) -> Maker:
    def make(
        name: str = "text",
        docs: Sequence[np.ndarray] | None = None,
        shards: int = 2,
        dtype: str = "uint16",
        tokenizer: tuple[str, str] = ("byte-level", "0" * 64),
        vocab_size: int = VOCAB_SIZE,
        window_tokens: int | None = None,
    ) -> Made:
        folder = tmp_path / name
        folder.mkdir()
        docs = documents() if docs is None else docs
        cuts = np.linspace(0, len(docs), shards + 1).astype(int)
        files = []
        for number, (first, end) in enumerate(itertools.pairwise(cuts)):
            files += write_shard(folder, f"{number:03d}_{name}.ds", docs[first:end], dtype, window_tokens)
        tokens = np.concatenate([np.fromfile(folder / e.name, dtype=dtype) for e in files if e.tokens is not None])
        ends, start = [], 0
        for entry in (e for e in files if e.tokens is not None):
            ends.append(np.fromfile(folder / f"{entry.name}.index", dtype="<u8") + start)
            start += entry.tokens
        Manifest(
            tokenizer=TokenizerIdentity(name=tokenizer[0], sha256=tokenizer[1]),
            vocab_size=vocab_size,
            dtype=dtype,
            eos_id=EOS,
            window_tokens=window_tokens,
            tokens=len(tokens),
            documents=len(np.concatenate(ends)),
            files=sorted(files, key=lambda entry: entry.name),
        ).write(folder)
        return Made(folder, tokens.astype(np.int64), np.concatenate(ends).astype(np.int64))

    return make


def write_shard(folder: Path, name: str, docs: Sequence[np.ndarray], dtype: str, chunk: int | None) -> list[FileEntry]:
    """One shard with its index; with `chunk`, cut into whole chunks as an offline chunk shuffle leaves it."""
    tokens = np.concatenate(docs)
    ends = np.cumsum([len(doc) for doc in docs])
    if chunk:
        tokens = tokens[: len(tokens) // chunk * chunk]
        ends = np.union1d(ends[ends < len(tokens)], np.arange(chunk, len(tokens) + 1, chunk))
    tokens.astype(dtype).tofile(folder / name)
    ends.astype("<u8").tofile(folder / f"{name}.index")
    entries = []
    for file, counts in ((name, {"tokens": len(tokens), "documents": len(ends)}), (f"{name}.index", {})):
        path = folder / file
        entries.append(FileEntry(name=file, bytes=path.stat().st_size, sha256=sha256_of_file(path), **counts))
    return entries


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> tuple[str, str]:
    """A local tokenizer folder and the SHA-256 of its tokenizer.json."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"model": {"type": "bytes"}}')
    return str(folder), hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
