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
import torch

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
        megatron: bool = False,
        eos_ends_documents: bool = False,
    ) -> Made:
        folder = tmp_path / name
        folder.mkdir()
        docs = documents() if docs is None else docs
        cuts = np.linspace(0, len(docs), shards + 1).astype(int)
        files: list[FileEntry] = []
        ends: list[np.ndarray] = []
        for number, (first, end) in enumerate(itertools.pairwise(cuts)):
            write = write_megatron_shard if megatron else write_shard
            shard, shard_ends = write(folder, f"{number:03d}_{name}", docs[first:end], dtype, window_tokens)
            ends.append(shard_ends + sum(entry.tokens or 0 for entry in files))
            files += shard
        tokens = np.concatenate([np.fromfile(folder / e.name, dtype=dtype) for e in files if e.tokens is not None])
        Manifest(
            tokenizer=TokenizerIdentity(name=tokenizer[0], sha256=tokenizer[1]),
            vocab_size=vocab_size,
            dtype=dtype,
            eos_id=EOS,
            eos_ends_documents=eos_ends_documents,
            window_tokens=window_tokens,
            tokens=len(tokens),
            documents=len(np.concatenate(ends)),
            files=sorted(files, key=lambda entry: entry.name),
        ).write(folder)
        return Made(folder, tokens.astype(np.int64), np.concatenate(ends).astype(np.int64))

    return make


Shard = tuple[list[FileEntry], np.ndarray]
"""Manifest entries and document ends."""


def write_shard(folder: Path, name: str, docs: Sequence[np.ndarray], dtype: str, chunk: int | None) -> Shard:
    """One shard with its index; with `chunk`, cut into whole chunks as an offline chunk shuffle leaves it."""
    tokens = np.concatenate(docs)
    ends = np.cumsum([len(doc) for doc in docs])
    if chunk:
        tokens = tokens[: len(tokens) // chunk * chunk]
        ends = np.union1d(ends[ends < len(tokens)], np.arange(chunk, len(tokens) + 1, chunk))
    tokens.astype(dtype).tofile(folder / f"{name}.ds")
    ends.astype("<u8").tofile(folder / f"{name}.ds.index")
    return entries(folder, f"{name}.ds", f"{name}.ds.index", len(tokens), len(ends)), ends


def write_megatron_shard(folder: Path, name: str, docs: Sequence[np.ndarray], dtype: str, chunk: int | None) -> Shard:
    """One shard as Megatron-Core's own builder writes it."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    assert chunk is None
    builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.uint16 if dtype == "uint16" else np.int32)
    for doc in docs:
        builder.add_document(torch.from_numpy(doc), [len(doc)])
    builder.finalize(str(folder / f"{name}.idx"))
    ends = np.cumsum([len(doc) for doc in docs])
    return entries(folder, f"{name}.bin", f"{name}.idx", int(ends[-1]), len(ends)), ends


def entries(folder: Path, shard: str, index: str, tokens: int, documents: int) -> list[FileEntry]:
    counts = {shard: {"tokens": tokens, "documents": documents}, index: {}}
    return [
        FileEntry(name=name, bytes=(folder / name).stat().st_size, sha256=sha256_of_file(folder / name), **count)
        for name, count in counts.items()
    ]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> tuple[str, str]:
    """A local tokenizer folder and the SHA-256 of its tokenizer.json."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"model": {"type": "bytes"}}')
    return str(folder), hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
