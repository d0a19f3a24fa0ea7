"""A token dataset of random ids in the real format, for machines that have no data."""

import json
from pathlib import Path

import numpy as np

from smol_config import load
from smol_data.manifest import FileEntry, Manifest, TokenizerIdentity, sha256_of_file
from smol_train.config import RunConfig

MEAN_TOKENS, SPREAD = 800, 1.0
"""Of a document's length: the mean, and the standard deviation of its logarithm (log-normal, as web text roughly is)."""


def with_synthetic_data(config_file: str, overrides: list[str], steps: int, folder: Path) -> list[str]:
    """Write a dataset of `steps` steps into `folder`; returns the overrides of a run on it."""
    # One stage as long as the file's, so that the learning rate's schedule still fits.
    length = load(RunConfig, config_file, overrides, keep_unset=True).train_steps
    stage = {"name": "synthetic", "steps": max(length, steps), "weights": {"synthetic": 1}}
    overrides = [
        *overrides,
        "data.tokenizer=synthetic",
        f"data.datasets={json.dumps({'synthetic': str(folder)})}",
        "data.held_out={}",
        f"data.stages={json.dumps([stage])}",
    ]
    config = load(RunConfig, config_file, overrides)
    write_dataset(folder, steps * config.tokens_per_step + 1, config.model.vocab_size, config.data.tokenizer)
    return overrides


def document_ends(tokens: int, generator: np.random.Generator) -> np.ndarray:
    """uint64 ends of documents that cover exactly `tokens` tokens; every document has at least two."""
    location = np.log(MEAN_TOKENS) - SPREAD**2 / 2
    lengths = np.maximum(generator.lognormal(location, SPREAD, size=4 * (tokens // MEAN_TOKENS) + 64).astype(np.int64), 2)
    ends = np.cumsum(lengths)
    ends = ends[ends < tokens - 1]
    return np.append(ends, tokens).astype("<u8")


def write_dataset(folder: Path, tokens: int, vocab_size: int, tokenizer: str, seed: int = 0) -> None:
    """Write `tokens` uniform ids below `vocab_size` as one shard; the highest id ends a document."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    ends = document_ends(tokens, generator)
    ids = generator.integers(vocab_size - 1, size=tokens, dtype=dtype)
    ids[ends.astype(np.int64) - 1] = vocab_size - 1

    shard, index = folder / "00000_synthetic.ds", folder / "00000_synthetic.ds.index"
    ids.astype(np.dtype(dtype).newbyteorder("<")).tofile(shard)
    ends.tofile(index)
    counts = {shard: {"tokens": tokens, "documents": len(ends)}, index: {}}
    Manifest(
        tokenizer=TokenizerIdentity(name=tokenizer, sha256="0" * 64),
        vocab_size=vocab_size,
        dtype=dtype,  # type: ignore[arg-type]
        eos_id=vocab_size - 1,
        eos_ends_documents=True,
        tokens=tokens,
        documents=len(ends),
        files=[
            FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_of_file(path), **count)
            for path, count in counts.items()
        ],
    ).write(folder)
