"""Which files the INPUT arguments of a command mean: JSON Lines, Parquet, Arrow or plain text, found in a fixed order.

Used by every command that reads text. The order matters: shards take files by their place in this list, so it follows the
arguments and, inside a folder, the sorted relative paths, never the file system's own order. A folder may be a clone of a Hub
dataset repository, or what `datasets.save_to_disk` wrote: what lies beside the data there is passed over.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from smol_config import UserError

ENDINGS = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "text": (".txt",),
}
ALL_ENDINGS = ", ".join(ending for endings in ENDINGS.values() for ending in endings)

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# How the Hub's datasets name their splits, as a word of a file's or folder's name.
_TRAIN_SPLIT = re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(?<![a-z])(?:test|validation|valid|dev|val|eval)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Inputs:
    """Files of one kind (a key of ENDINGS), absolute, in order."""

    kind: str
    files: tuple[str, ...]
    text_key: str
    columns: tuple[str, ...] = ()
    """Keys or columns that documents carry as metadata beside their text, for steps that look at them."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(Path(file).stat().st_size for file in self.files)

    @property
    def identity(self) -> str:
        """A short text that changes when a file comes, goes, moves or changes its size."""
        sizes = [Path(file).stat().st_size for file in self.files]
        listing = "\n".join(f"{size} {file}" for size, file in zip(sizes, self.files, strict=True))
        digest = hashlib.sha256(listing.encode()).hexdigest()[:12]
        return f"{len(self.files)} files of {sum(sizes)} bytes, list {digest}"

    def reader(self, max_broken_lines: int = 0) -> Any:
        """A datatrove reader over the files; as a pipeline step it gives task r of n the files r, r+n, r+2n, ..."""
        from data_tools.datatrove_steps import READERS

        return READERS[self.kind](list(self.files), self.text_key, self.columns, max_broken_lines)

    def texts(self) -> Iterator[str]:
        """The text of every document, in order; raises UserError at the first document that cannot be used."""
        for document in self.reader().run():
            yield document.text


def find_inputs(paths: Sequence[Path], text_key: str, patterns: Sequence[str] = (), columns: tuple[str, ...] = ()) -> Inputs:
    """The input files that `paths` (files, or folders searched to the bottom) mean.

    Of a folder only files whose path inside it matches one of `patterns` (as `data/train-*`) are taken, all without
    patterns. Raises UserError when a path is missing or holds nothing readable, when a file is empty, a Git LFS pointer or
    named twice, when kinds are mixed, or when a folder holds other splits beside training data and no pattern chooses.
    """
    found: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"input {path} does not exist; give files or folders of {ALL_ENDINGS}")
        here = _in_folder(path, patterns) if path.is_dir() else _of_kind(path)
        if not here:
            raise UserError(f"input {path} holds no file that can be read; known endings: {ALL_ENDINGS}")
        found += here
    names = [name for _, name in found]
    times = Counter(str(Path(name).resolve()) for name in names)
    if twice := sorted(name for name, count in times.items() if count > 1):
        raise UserError(f"input file {twice[0]} is given twice; its documents would count double, so name it once")
    by_kind = {kind: [name for found_kind, name in found if found_kind == kind] for kind in ENDINGS}
    kinds = [kind for kind, files_of_kind in by_kind.items() if files_of_kind]
    if len(kinds) > 1:
        examples = " and ".join(by_kind[kind][0] for kind in kinds)
        raise UserError(f"the inputs mix {' and '.join(kinds)} files (such as {examples}); name files of one kind at a time")
    for name in names:
        _check_content(Path(name), kinds[0])
    return Inputs(kinds[0], tuple(names), text_key, columns)


def _in_folder(folder: Path, patterns: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, absolute path) of a folder's data files, sorted by their path inside it."""
    inside = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    # Hidden files and folders (.git, .cache/huggingface) are nobody's data.
    shown = [name for name in sorted(inside) if not any(part.startswith(".") for part in name.split("/"))]
    data = [name for name in shown if _kind(name)]
    wanted = [name for name in data if any(fnmatch(name, pattern) for pattern in patterns)] if patterns else data
    if data and not wanted:
        raise UserError(f"--files {' '.join(patterns)}: no data file of {folder} matches; it holds {data[0]} and the like")
    train = next(filter(_TRAIN_SPLIT.search, data), None)
    other = next((name for name in data if _OTHER_SPLIT.search(name) and not _TRAIN_SPLIT.search(name)), None)
    if train and other and not patterns:
        before = _TRAIN_SPLIT.split(train)[0]
        raise UserError(
            f"input {folder} holds other splits ({other}) beside training data ({train}); name the files to take, or tell "
            f"tokenize --files '{before}train*'"
        )
    return [found for name in wanted for found in _of_kind(inside[name])]


def _of_kind(file: Path) -> list[tuple[str, str]]:
    # Not resolved: the Hub's cache holds links whose targets have no endings.
    return [(kind, str(file.absolute()))] if (kind := _kind(file.name)) else []


def _kind(name: str) -> str | None:
    """The kind of a file by its ending."""
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)


def _check_content(file: Path, kind: str) -> None:
    size = file.stat().st_size
    if not size and kind != "text":
        raise UserError(f"input file {file} is empty; fetch or write it again, or leave it out")
    if size < 1000:
        with file.open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise UserError(f"input file {file} is a Git LFS pointer, not the data; run `git lfs pull` in its repository")
