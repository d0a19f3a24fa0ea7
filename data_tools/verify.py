"""`verify`: are these token datasets whole, and what their manifests say they are? Names the first bad byte range.

After every copy of a dataset, and before a run that takes weeks. Checked for each folder: the manifest; every file's size
and SHA-256; document ends ascending and ending at the last token; ids below vocab_size; EOS at the end of every document,
unless the manifest says that there is none; in a set that was shuffled into chunks, a cut at every chunk's end. An EOS
inside a document is a warning (a fault where the manifest denies it), and so are files that the manifest does not list.

shard_checks.py looks at the files; this file shares them out, and says what was found. `verify_folder` is what other
commands call.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.output import REPORT_NAME
from data_tools.parallel import run_tasks
from data_tools.shard_checks import ShardTask, check_shard, index_name
from smol_config import UserError
from smol_console import Progress, add_command, whole_number
from smol_data.manifest import MANIFEST_NAME, DataError, FileEntry, Manifest, read_manifest


@dataclass
class Verdict:
    """What is known about a folder after looking at all of it."""

    folder: Path
    manifest: Manifest | None = None
    """None when it cannot be read."""
    faults: list[str] = field(default_factory=list)
    """One line each; empty means that the folder may be trained on."""
    warnings: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    """Of every file that was hashed, by name."""
    eos_inside: int = 0
    """How often the EOS id stands where no document ends."""


def add_parser(subparsers: Any) -> None:
    """Add `verify` to the command line."""
    parser = add_command(
        subparsers,
        "verify",
        "Check token datasets against their manifests: sizes, hashes, document ends, ids; names the first bad byte range.",
        "python -m data_tools verify runs/tokens/code --workers 8",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="token dataset folders")
    parser.add_argument("--quick", action="store_true", help="sizes and indexes only: reads no tokens, hashes nothing")
    parser.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="processes, each takes whole files (default: cores)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; all folders are looked at, then UserError is raised when one has a fault."""
    bad = []
    for folder in options.folders:
        verdict = verify_folder(folder, options.workers or os.cpu_count() or 1, options.quick)
        for warning in verdict.warnings:
            print(f"warning: {folder}: {warning}", file=sys.stderr)
        for fault in verdict.faults:
            print(f"fault: {folder}: {fault}", file=sys.stderr)
        if verdict.faults:
            bad.append(str(folder))
        elif manifest := verdict.manifest:
            looked = "sizes and indexes" if options.quick else "every byte"
            print(
                f"ok: {folder}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), "
                f"{len(manifest.shards)} shards, {looked} checked"
            )
    if bad:
        raise UserError(f"{len(bad)} of {len(options.folders)} folders have faults: {', '.join(bad)}; copy or make them again")


def verify_folder(folder: Path, workers: int = 1, quick: bool = False) -> Verdict:
    """Check one token dataset folder; never raises for what is wrong with it.

    `quick` reads sizes and indexes alone. Memory does not grow with the dataset: some blocks of 8 MiB for each worker.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return Verdict(folder, faults=[str(error)])
    verdict = check_files(folder, manifest, workers, quick)
    listed = {MANIFEST_NAME, REPORT_NAME, *(entry.name for entry in manifest.files)}
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    verdict.warnings += [
        f"{name} is not listed in the manifest, so nothing is known about it" for name in sorted(on_disk - listed)
    ]
    return verdict


def check_files(folder: Path, manifest: Manifest, workers: int, quick: bool = False) -> Verdict:
    """Check the files that a manifest lists, which need not stand in the folder yet; an empty sha256 is not compared."""
    verdict = Verdict(folder, manifest, list(_manifest_faults(manifest)))
    if verdict.faults:
        return verdict
    tasks = _tasks(folder, manifest, quick)
    total = sum(entry.bytes for task in tasks for entry in task.manifest.files)
    with Progress(f"checking {folder}", "bytes", total=None if quick else total) as progress:
        for report in run_tasks(check_shard, tasks, workers, progress):
            verdict.faults += report.faults
            verdict.warnings += report.warnings
            verdict.sha256 |= report.sha256
            verdict.eos_inside += report.eos_inside
    return verdict


def _manifest_faults(manifest: Manifest) -> Iterator[str]:
    """What contradicts itself inside a manifest."""
    names = [entry.name for entry in manifest.files]
    if names != sorted(set(names)):
        yield f"{MANIFEST_NAME}: its files are not sorted by name, each once; make the dataset again"
    if not manifest.shards:
        yield f"{MANIFEST_NAME} lists no shard (*.ds or *.bin); make the dataset again"
    for shard in manifest.shards:
        if shard.tokens is None or shard.documents is None:
            yield f"{MANIFEST_NAME}: {shard.name} has no counts of tokens and documents; make the dataset again"
        if index_name(shard.name) not in names:
            yield f"{MANIFEST_NAME}: {index_name(shard.name)}, the index of {shard.name}, is not listed; make the dataset again"
    sums = [sum(getattr(shard, what) or 0 for shard in manifest.shards) for what in ("tokens", "documents")]
    if sums != [manifest.tokens, manifest.documents]:
        yield (
            f"{MANIFEST_NAME}: the shards sum to {sums[0]} tokens and {sums[1]} documents, but its totals are "
            f"{manifest.tokens} and {manifest.documents}; make the dataset again"
        )


def _tasks(folder: Path, manifest: Manifest, quick: bool) -> list[ShardTask]:
    """One task for each shard with its index, and for each other file; the large ones first, so that no worker ends late."""
    entries = {entry.name: entry for entry in manifest.files}
    groups: list[list[FileEntry]] = []
    for shard in manifest.shards:
        groups.append([shard, entries.pop(index_name(shard.name))])
        del entries[shard.name]
    groups += [[entry] for entry in entries.values()]
    groups.sort(key=lambda group: -sum(entry.bytes for entry in group))
    return [ShardTask(folder, _part(manifest, group), quick) for group in groups]


def _part(manifest: Manifest, files: list[FileEntry]) -> Manifest:
    """The manifest as if it listed these files alone; its readers then see one shard."""
    tokens, documents = (sum(getattr(entry, what) or 0 for entry in files) for what in ("tokens", "documents"))
    return manifest.model_copy(update={"files": files, "tokens": tokens, "documents": documents})
