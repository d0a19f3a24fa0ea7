"""Reading token datasets in tests of `tokenize`, and a step that holds a shard back so that a test can kill its worker."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from tokenizers import Tokenizer

from smol_data.manifest import read_manifest

TEXTS = ["first text, é 漢 🙂", "second\n\ttext\r\n", " third ", "fourth: <|end_of_text|> inside", "5 5 5"]


def documents_in(folder: Path) -> list[list[int]]:
    """The ids of every document of a token dataset, read from the files alone."""
    manifest = read_manifest(folder)
    documents = []
    for shard in manifest.shards:
        ids = np.fromfile(folder / shard.name, dtype=manifest.token_dtype)
        ends = np.fromfile(folder / f"{shard.name}.index", dtype="<u8").astype(int)
        documents += [part.tolist() for part in np.split(ids, ends[:-1])]
    return documents


def texts_in(folder: Path, tokenizer: Path) -> list[str]:
    """Every document's text, its EOS checked and taken away."""
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    documents = documents_in(folder)
    assert all(ids[-1] == 0 and 0 not in ids[:-1] for ids in documents)
    return [loaded.decode(ids[:-1], skip_special_tokens=False) for ids in documents]


def changed_tokenizer(tokenizer: Path, folder: Path, **settings: object) -> Path:
    """A copy of a tokenizer folder with other settings in tokenizer_config.json."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


class Gate(PipelineStep):
    """Lets all documents pass, those of one shard only when `closed` is gone; writes its process's id there meanwhile."""

    def __init__(self, closed: Path, rank: int) -> None:
        super().__init__()
        self.closed, self.rank = closed, rank

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if rank == self.rank and self.closed.exists():
            self.closed.write_text(str(os.getpid()))
            while self.closed.exists():
                time.sleep(0.01)
        yield from data
