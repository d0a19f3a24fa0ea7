"""Where records come from: JSON Lines or Parquet, here or in a dataset repository of the Hub. First step of preparation.

    Source -> find() -> files -> records() -> one dict a row, numbered from 0 in the file

Rows stream: a Parquet batch or a line is in memory at a time. Every error names the dataset, the file and the row.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_tools.inputs import find_inputs
from post_training.config import Source
from smol_config import UserError

PARQUET_ROWS = 256
"""Read at a time: rows of long conversations take a megabyte each."""


@dataclass(frozen=True)
class FoundSource:
    """A source whose files are there."""

    source: Source
    files: tuple[str, ...]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Of each file: read from Parquet's footers, counted in JSON Lines. Raises UserError when there are none at all."""
        rows = tuple(_count(self.source, file) for file in self.files)
        if not sum(rows):
            raise UserError(
                f"dataset {self.source.name}: {self.source.path} holds no rows; fetch or write it again, or leave it out"
            )
        return rows

    @property
    def identity(self) -> str:
        """Changes when a file comes, goes, or changes its name or size; not when the folder moves."""
        listing = "\n".join(f"{Path(file).name} {Path(file).stat().st_size}" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()[:16]


def find(source: Source) -> FoundSource:
    """The files of a source, fetched from the Hub where `path` is not here; raises UserError when there is nothing to read."""
    folder = Path(source.path)
    try:
        inputs = find_inputs([folder if folder.exists() else _fetch(source)], "", source.files)
    except UserError as error:  # find_inputs speaks of an option where there is a setting here
        sentence = str(error).replace("tell tokenize --files", "say in files:").replace("--files", "files:")
        raise UserError(f"dataset {source.name}: {sentence}") from error
    if inputs.kind not in ("jsonl", "parquet"):
        raise UserError(f"dataset {source.name}: {inputs.files[0]} is {inputs.kind}; give JSON Lines or Parquet")
    return FoundSource(source, inputs.files)


def records(source: Source, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one file with their numbers, from 0; raises UserError for a file that cannot be read."""
    number = -1
    try:
        for number, record in enumerate(_parquet(file) if file.endswith(".parquet") else _json_lines(file)):
            if not isinstance(record, dict):
                raise ValueError(f"{type(record).__name__} where an object should stand")
            yield number, record
    except (ValueError, OSError, EOFError) as error:  # Arrow's, orjson's and the decompressors' errors are of these kinds
        raise UserError(
            f"dataset {source.name}: {file} cannot be read after row {number} ({error}); fetch or write it again"
        ) from error


def _count(source: Source, file: str) -> int:
    try:
        if file.endswith(".parquet"):
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(file).num_rows)
        return sum(1 for _ in _lines(file))
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"dataset {source.name}: {file} cannot be read ({error}); fetch or write it again") from error


def _parquet(file: str) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=PARQUET_ROWS):
            yield from batch.to_pylist()


def _json_lines(file: str) -> Iterator[Any]:
    import orjson

    return map(orjson.loads, _lines(file))


def _lines(file: str) -> Iterator[bytes]:
    """Lines that are not blank, decompressed as data_tools does it."""
    from data_tools.compressed_lines import decompressed_lines

    with decompressed_lines(file) as lines:
        yield from (line for line in lines if not line.isspace())


def on_the_hub(source: Source) -> bool:
    """Whether its path names a dataset repository, as far as the words tell."""
    return not Path(source.path).exists() and source.path.count("/") == 1 and not source.path.startswith((".", "/", "~"))


def _fetch(source: Source) -> Path:
    """The folder in the Hub's cache that holds the matching files of a dataset repository."""
    from huggingface_hub import snapshot_download

    if not on_the_hub(source):
        raise UserError(f"path={source.path} is not there, and no namespace/name of the Hub either; mend it")
    try:
        return Path(
            snapshot_download(source.path, repo_type="dataset", revision=source.revision, allow_patterns=source.files or None)
        )
    except Exception as error:  # no network, no such repository, no permission: each its own kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"path={source.path} is no file or folder here and cannot be fetched from the Hub at {source.revision} ({reason}); "
            f"mend the path, fetch it where the Hub is within reach, or set HF_TOKEN"
        ) from error
