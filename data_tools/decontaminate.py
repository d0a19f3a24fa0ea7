"""`decontaminate`: finds training documents that hold text of evaluation sets, and writes a copy without them.

Stands before `tokenize`: text -> **decontaminate** -> kept text -> tokenise. A document is dropped when it shares n words in a
row with an evaluation item (ngram_index.py has the rule: how words are found, and what becomes of items shorter than n).

    OUT_DIR/kept/00000-NAME.jsonl   the records of input file 0 that are kept, with all their fields
    OUT_DIR/hits.jsonl              one line for each pair of document and text of an item: where, which words, their context
    OUT_DIR/report.json             the rule, and what was read, dropped and hit, by evaluation set

The evaluation sets are held in memory-mapped arrays, the documents stream through in batches; workers take whole files, and
nothing depends on their number. datatrove's readers read; its own decontamination needs lighteval's task list.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.inputs import ALL_ENDINGS, ENDINGS, Inputs, find_inputs
from data_tools.output import REPORT_NAME, check_new_folder, whole_folder
from data_tools.parallel import Advance, run_tasks
from smol_config import UserError
from smol_console import Progress, add_command, whole_number

_BATCH = 2 << 20  # bytes of text searched at a time


class Reference(NamedTuple):
    """Where a text of an evaluation set comes from."""

    eval_set: str
    item: int
    """Line, from 1."""
    key: str
    """Path inside the record, as `choices.2`."""


@dataclass(frozen=True)
class ScanTask:
    """One input file."""

    inputs: Inputs
    index: Path
    kept: Path | None
    hits: Path


class ScanResult(NamedTuple):
    """Documents of one file."""

    documents: int
    dropped: int
    empty: int


def add_parser(subparsers: Any) -> None:
    """Add `decontaminate` to the command line."""
    parser = add_command(
        subparsers,
        "decontaminate",
        "Find documents that share n words in a row with evaluation sets; write every hit, and a copy of the other documents.",
        "python -m data_tools decontaminate runs/corpus/docs runs/clean/docs --against runs/corpus/held_out/docs/*.jsonl",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=f"files or folders of {ALL_ENDINGS}, of one kind")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder: kept/, hits.jsonl, report.json")
    parser.add_argument(
        "--against",
        nargs="+",
        required=True,
        type=Path,
        metavar="EVAL",
        help="evaluation sets: .jsonl or .jsonl.gz, one item a line",
    )
    parser.add_argument("--ngram", type=whole_number(2), default=13, metavar="N", help="words in a row (default 13)")
    parser.add_argument(
        "--least-words",
        type=whole_number(1),
        metavar="K",
        help="texts of K to N - 1 words are matched whole, shorter ones not (default 8)",
    )
    parser.add_argument(
        "--text-key",
        default="text",
        metavar="KEY",
        help="key or column of the text, or of conversations: messages (default text)",
    )
    parser.add_argument(
        "--eval-key",
        action="append",
        metavar="KEY",
        help="of the items' text, also several times (default: every text of an item)",
    )
    parser.add_argument("--report-only", action="store_true", help="write hits and report, copy nothing")
    parser.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="processes, each takes whole files (default: cores)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on unusable inputs, evaluation sets or settings."""
    check_new_folder(options.out_dir)
    least = min(8, options.ngram) if options.least_words is None else options.least_words
    if least > options.ngram:
        raise UserError(f"--least-words {least} is more than --ngram {options.ngram}; give {options.ngram} or less")
    inputs = find_inputs(options.inputs, options.text_key)
    references, texts = read_references(options.against, options.eval_key)
    with whole_folder(options.out_dir) as folder, tempfile.TemporaryDirectory() as notes:
        index = Path(notes)
        report, too_short = _index(index, texts, options.ngram, least)
        results = _scan_all(folder, index, inputs, options.report_only, options.workers or os.cpu_count() or 1)
        counts = [sum(result) for result in zip(*results, strict=True)]
        report |= dict(zip(("documents", "dropped", "empty"), counts, strict=True))
        report["eval_sets"] = list(_merge_hits(folder, references, too_short))
        (folder / REPORT_NAME).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    _print(report, options)


def read_references(paths: Sequence[Path], keys: Sequence[str] | None) -> tuple[list[Reference], list[str]]:
    """The texts of evaluation sets and where they come from; raises UserError when a set cannot be used."""
    import orjson

    references: list[Reference] = []
    texts: list[str] = []
    for path in paths:
        if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"--against {path} is not a .jsonl or .jsonl.gz file; give evaluation sets with one item a line")
        if any(reference.eval_set == str(path) for reference in references):
            raise UserError(f"--against {path} is given twice; name it once")
        before = len(texts)
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.isspace():
                        for key, text in _texts_of(orjson.loads(line), keys, f"{path}, line {number}"):
                            references.append(Reference(str(path), number, key))
                            texts.append(text)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"--against {path} cannot be read ({error}); fetch or write it again") from error
        if len(texts) == before:
            raise UserError(f"--against {path} holds no text; name another file, or its keys with --eval-key")
    return references, texts


def _texts_of(item: Any, keys: Sequence[str] | None, where: str) -> Iterator[tuple[str, str]]:
    """The texts of an item: of these keys, or all, to the bottom of its lists and mappings."""
    if keys is not None and isinstance(item, dict):
        if missing := [key for key in keys if key not in item]:
            there = ", ".join(map(repr, item)) or "none"
            raise UserError(f"{where}: no key {missing[0]!r}; keys there: {there}; name the texts' keys with --eval-key")
        item = {key: item[key] for key in keys}
    yield from _strings("", item)


def _strings(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(f"{path}.{key}" if path else str(key), inner)


def _index(folder: Path, texts: list[str], length: int, least: int) -> tuple[dict[str, Any], set[int]]:
    """Write the index; the report's beginning, and which texts are too short."""
    from data_tools.ngram_index import build_index

    size = build_index(folder, texts, length, least)
    if not size.ngrams:
        raise UserError(f"no text of the evaluation sets has --least-words {least} words; give a smaller number")
    rule = "NFKC, lower case; words are runs of letters, digits and underscores, and single ideographs and kana"
    report = {"ngram": length, "least_words": least, "words": rule, "ngrams": size.ngrams, "index_bytes": size.bytes}
    return report, set(size.too_short)


def _scan_all(folder: Path, index: Path, inputs: Inputs, report_only: bool, workers: int) -> list[ScanResult]:
    """Search all files; kept/ and hits/ get one file for each."""
    kept, hits = folder / "kept", folder / "hits"
    hits.mkdir()
    if not report_only:
        kept.mkdir()
    tasks = []
    for number, file in enumerate(inputs.files):
        name = f"{number:05d}-{_stem(Path(file).name)}.jsonl"
        one = replace(inputs, files=(file,))
        tasks.append(ScanTask(one, index, None if report_only else kept / name, hits / name))
    with Progress("searching", "bytes of text") as progress:
        return list(run_tasks(scan, tasks, workers, progress))


def _stem(name: str) -> str:
    endings = [ending for endings in ENDINGS.values() for ending in endings if name.endswith(ending)]
    return name.removesuffix(max(endings, key=len))


def scan(task: ScanTask, advance: Advance) -> ScanResult:
    """Search one file: write its hits, and the records that are kept. `advance` counts bytes of text."""
    import orjson

    from data_tools.ngram_index import NgramIndex, normalised
    from data_tools.whole_records import record_reader

    index, reader = NgramIndex(task.index), record_reader(task.inputs)
    documents = dropped = 0
    with task.hits.open("wb") as hits, (task.kept or Path(os.devnull)).open("wb") as kept:
        for batch in _batches(reader.run()):
            matches = index.find([normalised(document.text) for document in batch])
            for match in matches:
                file, _, record = batch[match.document].id.rpartition("/")
                hits.write(orjson.dumps({"file": file, "record": int(record)} | match._asdict()) + b"\n")
            hit = {match.document for match in matches}
            for number, document in enumerate(batch):
                if number not in hit:
                    kept.write(orjson.dumps(document.metadata, default=str) + b"\n")
            documents, dropped = documents + len(batch), dropped + len(hit)
            advance(sum(len(document.text) for document in batch))
    if task.kept and documents == dropped:
        task.kept.unlink()  # a file without documents would be refused by the commands that read it
    return ScanResult(documents, dropped, reader.empty_documents)


def _batches(documents: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _merge_hits(folder: Path, references: list[Reference], too_short: set[int]) -> Iterator[dict[str, Any]]:
    """Put the files' hits into one, with the items' names; what was hit of each evaluation set."""
    documents: Counter[str] = Counter()
    items_hit: dict[str, set[int]] = {reference.eval_set: set() for reference in references}
    with (folder / "hits.jsonl").open("w", encoding="utf8") as merged:
        for path in sorted((folder / "hits").iterdir()):
            last = None
            with path.open(encoding="utf8") as lines:
                for line in lines:
                    hit = json.loads(line)
                    reference = references[hit["reference"]]
                    if last != (last := (hit["record"], reference.eval_set)):
                        documents[reference.eval_set] += 1
                    items_hit[reference.eval_set].add(reference.item)
                    shown = {name: hit[name] for name in ("words", "places", "ngram", "context")}
                    record = {"file": hit["file"], "record": hit["record"]} | reference._asdict() | shown
                    merged.write(json.dumps(record, ensure_ascii=False) + "\n")
            path.unlink()
    (folder / "hits").rmdir()
    for name, hit_items in items_hit.items():
        items = {reference.item for reference in references if reference.eval_set == name}
        searched = {
            reference.item
            for number, reference in enumerate(references)
            if reference.eval_set == name and number not in too_short
        }
        yield {
            "eval_set": name,
            "items": len(items),
            "items_too_short": len(items - searched),
            "items_hit": len(hit_items),
            "documents_hit": documents[name],
        }


def _print(report: dict[str, Any], options: argparse.Namespace) -> None:
    width = max(len(part["eval_set"]) for part in report["eval_sets"])
    print(f"{'evaluation set':<{max(14, width)}} {'items':>9} {'too short':>9} {'hit':>9} {'documents':>10}")
    for part in report["eval_sets"]:
        numbers = f"{part['items']:>9,} {part['items_too_short']:>9,} {part['items_hit']:>9,} {part['documents_hit']:>10,}"
        print(f"{part['eval_set']:<{max(14, width)}} {numbers}")
    done = "found" if options.report_only else "dropped"
    print(f"{done} {report['dropped']:,} of {report['documents']:,} documents; {report['empty']:,} more were empty")
    print(f"index: {report['ngrams']:,} n-grams, {report['index_bytes']:,} bytes")
    print(f"written: {options.out_dir}")
