"""`corpus`: a small real corpus that needs no download, taken from the standard library that every CPython carries.

First step of the flow (text -> tokenizer -> token shards -> smol_data -> trainer) for the quickstart and the tests; real
runs bring their own text. Two datasets, as JSON Lines with `text` and `id`:

  code   the library's .py sources, without tests and installed packages
  docs   prose: the language reference's topics, each module's docstrings as one document, README, NEWS and .txt files

**Held out by source.** A module's docstrings also stand inside its source file. Were documents held out one by one, a
held-out docstring would be trained on as code. So the seeded hash is taken of the *source* (a module's file, a topic, a
prose file), and all documents of a held-out source are held out, in both datasets. The topics' own .py file is no `code`.
Equal texts are kept once. The hash makes the choice stable: a source stays on its side when others come or go.
"""

import argparse
import ast
import hashlib
import inspect
import json
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.output import check_new_folder, whole_folder
from smol_config import UserError
from smol_console import Progress, add_command, whole_number

DATASETS = ("code", "docs")
LEAST_HELD_OUT = 4  # sources of each dataset, so that an evaluation never hangs on one document
TRAINING_FILES = 4  # files per training dataset: `tokenize --tasks` can share them among workers
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
TOPICS = "pydoc_data/topics.py"
NOT_PROSE = {"Grammar.txt", "PatternGrammar.txt"}


@dataclass(frozen=True)
class Document:
    """One text. Documents that share a `source` are held out together."""

    dataset: str
    id: str
    source: str
    text: str


def add_parser(subparsers: Any) -> None:
    """Add `corpus` to the command line."""
    parser = add_command(
        subparsers,
        "corpus",
        "Write a corpus of code and prose from Python's own standard library, with held-out documents; no download.",
        "python -m data_tools corpus runs/corpus",
    )
    parser.add_argument(
        "out_dir", type=Path, metavar="OUT_DIR", help="new folder: code/, docs/, held_out/code/, held_out/docs/"
    )
    parser.add_argument(
        "--held-out-share", type=_share, default=0.02, metavar="X", help="share of sources held out (default 0.02)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the held-out choice (default 0)")
    library = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("--library", type=Path, default=library, metavar="DIR", help="default: the running Python's library")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on an unusable library or a folder in use."""
    check_new_folder(options.out_dir)
    documents, skipped = read_library(options.library)
    parts = split(documents, options.held_out_share, options.seed)
    with whole_folder(options.out_dir) as folder:
        for name, part in parts.items():
            write_jsonl(folder / name, part, files=1 if name.startswith("held_out") else TRAINING_FILES)
    for name, part in parts.items():
        size = sum(len(document.text.encode()) for document in part)
        print(f"{name:<14} {len(part):>6,} documents {size:>12,} bytes")
    if skipped:
        print(f"left out: {skipped} files that are not UTF-8")
    print(f"written: {options.out_dir}")


# --- reading -----------------------------------------------------------------------------------------------------------


def read_library(library: Path) -> tuple[list[Document], int]:
    """All documents of a standard library folder, in a fixed order, equal texts once; and how many files are not UTF-8.

    Nothing is imported or run. Raises UserError when the folder holds no sources.
    """
    files = list(_files(library))
    if not any(file.endswith(".py") for file in files):
        raise UserError(f"--library {library}: no .py files there; give the folder that holds os.py")
    documents: list[Document] = []
    seen: set[tuple[str, str]] = set()
    skipped = 0
    with Progress("reading the library", "files", total=len(files)) as progress:
        for file in files:
            try:
                text = (library / file).read_bytes().decode("utf8")
            except UnicodeDecodeError:
                skipped += 1
                text = ""
            for document in _documents(file, text):
                if document.text.strip() and (document.dataset, document.text) not in seen:
                    seen.add((document.dataset, document.text))
                    documents.append(document)
            progress.advance()
    return documents, skipped


def _files(library: Path) -> Iterator[str]:
    """Relative paths of sources and prose, sorted, tests and installed packages left out."""
    found = []
    for root, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [(Path(root) / name).relative_to(library).as_posix() for name in names if _wanted(name)]
    yield from sorted(found)


def _wanted(name: str) -> bool:
    if name.startswith("_sysconfigdata") or name in NOT_PROSE:  # generated on the build machine; tables for a parser
        return False
    return name.endswith((".py", ".txt", ".rst")) or name.startswith(("README", "NEWS", "HISTORY"))


def _documents(file: str, text: str) -> Iterator[Document]:
    """The documents of one file of the library."""
    if file == TOPICS:
        for name, topic in _topics(text):
            yield Document("docs", f"topics/{name}", f"topics/{name}", topic)
    elif file.endswith(".py"):
        yield Document("code", file, file, text)
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        yield Document("docs", f"docstrings/{module}", file, docstrings(module, text))
    else:
        yield Document("docs", f"prose/{file}", file, text)


def _topics(text: str) -> Iterator[tuple[str, str]]:
    """Name and text of the language reference's topics: the one dictionary literal of pydoc_data/topics.py."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from sorted(ast.literal_eval(statement.value).items())


def docstrings(module: str, text: str) -> str:
    """A module's docstrings, each under its qualified name, in the source's order; empty for a file that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    return "\n\n".join(f"{name}\n\n{doc}" for name, doc in _named_docstrings(module, tree))


def _named_docstrings(name: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and (doc := ast.get_docstring(node, clean=False)):  # type: ignore[arg-type]
        yield name, inspect.cleandoc(doc)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # nothing inside an expression can be documented
            continue
        inner = f"{name}.{child.name}" if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else name
        yield from _named_docstrings(inner, child)


# --- splitting and writing ---------------------------------------------------------------------------------------------


def split(documents: Iterable[Document], share: float, seed: int) -> dict[str, list[Document]]:
    """Documents by the folder they go to: code, docs, held_out/code, held_out/docs.

    A source is held out when its hash, read as a number in [0, 1), is below `share`; of a dataset with too few such
    sources, those with the smallest hashes join them. Raises UserError when a dataset is too small to be split.
    """
    documents = list(documents)
    held_out = {document.source for document in documents if _position(document.source, seed) < share}
    for dataset in DATASETS:
        sources = {document.source for document in documents if document.dataset == dataset}
        if len(sources) < 2 * LEAST_HELD_OUT:
            least = 2 * LEAST_HELD_OUT
            raise UserError(
                f"the library gives {len(sources)} sources of {dataset}, too few to hold any out; at least {least} are needed"
            )
        held_out.update(sorted(sources, key=lambda source: _position(source, seed))[:LEAST_HELD_OUT])
    parts: dict[str, list[Document]] = {f"{prefix}{dataset}": [] for prefix in ("", "held_out/") for dataset in DATASETS}
    for document in documents:
        parts[f"{'held_out/' if document.source in held_out else ''}{document.dataset}"].append(document)
    return parts


def _position(source: str, seed: int) -> float:
    """Where a source stands in [0, 1) under a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:6]) / 2**48


def write_jsonl(folder: Path, documents: list[Document], files: int) -> None:
    """Deal the documents out to `files` JSON Lines files in a new folder."""
    folder.mkdir(parents=True)
    for index in range(files):
        with (folder / f"part-{index:02d}.jsonl").open("w", encoding="utf8", newline="\n") as file:
            for document in documents[index::files]:
                file.write(json.dumps({"text": document.text, "id": document.id}, ensure_ascii=False) + "\n")


def _share(text: str) -> float:
    """An argparse type: a share in (0, 0.5]."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"{value} is not a share above 0 and up to 0.5")
    return value
