"""A dataset to be shuffled, and shuffling it with so many chunks in memory, for the tests of `shuffle`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from token_folders import random_documents, write_dataset

from data_tools import shuffle

S = 32


def write_source(folder: Path) -> Path:
    """About 80,000 tokens in three shards: 2,400 chunks of 33."""
    return write_dataset(folder, [random_documents(seed, 660) for seed in range(3)], eos_ends_documents=True)


def shuffled(source: Path, out: Path, run_chunks: int = 500, **changes: Any) -> Path:
    """Shuffle with so many chunks in a worker's memory."""
    options = {"in_dir": source, "out_dir": out, "seed": 1, "epoch": 0, "sequence_length": S, "memory": 10**9}
    options |= {"shard_size": 40_000, "workers": 1, "fresh": False} | changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "_chunks_that_fit", lambda *_: run_chunks)
        shuffle.run(Namespace(**options))
    return out
