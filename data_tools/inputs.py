"""Which files the INPUT arguments of a command mean: JSON Lines, Parquet or plain text, found in a fixed order.

Used by `train-tokenizer` and `tokenize`. The order matters: shards take files by their place in this list, so it follows
the arguments and, inside a folder, the sorted relative paths, never the file system's own order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smol_config import UserError

ENDINGS = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "text": (".txt",),
}
ALL_ENDINGS = ", ".join(ending for endings in ENDINGS.values() for ending in endings)


@dataclass(frozen=True)
class Inputs:
    """Files of one kind (a key of ENDINGS), absolute, in order."""

    kind: str
    files: tuple[str, ...]
    text_key: str

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(Path(file).stat().st_size for file in self.files)

    def reader(self) -> Any:
        """A datatrove reader over the files; as a pipeline step it gives task r of n the files r, r+n, r+2n, ..."""
        from data_tools.datatrove_steps import READERS

        return READERS[self.kind](list(self.files), self.text_key)

    def texts(self) -> Iterator[str]:
        """The text of every document, in order; raises UserError at the first document that cannot be used."""
        from data_tools.datatrove_steps import quiet

        with quiet():
            for document in self.reader().run():
                yield document.text


def find_inputs(paths: list[Path], text_key: str) -> Inputs:
    """The input files that `paths` (files, or folders searched to the bottom) mean.

    Raises UserError when a path is missing or holds nothing readable, when a file comes twice, or when kinds are mixed.
    """
    found: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"input {path} does not exist; give files or folders of {ALL_ENDINGS}")
        files = sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()) if path.is_dir() else [path]
        here = [(kind, str(file.resolve())) for file in files if file.is_file() and (kind := _kind(file))]
        if not here:
            raise UserError(f"input {path} holds no file that can be read; known endings: {ALL_ENDINGS}")
        found += here
    names = [name for _, name in found]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()):
        raise UserError(f"input file {twice[0]} is given twice; its documents would count double, so name it once")
    by_kind = {kind: [name for found_kind, name in found if found_kind == kind] for kind in ENDINGS}
    kinds = [kind for kind, files_of_kind in by_kind.items() if files_of_kind]
    if len(kinds) > 1:
        examples = " and ".join(by_kind[kind][0] for kind in kinds)
        raise UserError(f"the inputs mix {' and '.join(kinds)} files (such as {examples}); name files of one kind at a time")
    return Inputs(kinds[0], tuple(names), text_key)


def _kind(file: Path) -> str | None:
    """The kind of a file by its ending; hidden files are nobody's data."""
    if file.name.startswith("."):
        return None
    return next((kind for kind, endings in ENDINGS.items() if file.name.endswith(endings)), None)
