"""Everything that can be wrong with one shard of a token dataset, found in one pass over its bytes.

    ShardTask (a shard and its index, or any other file) --check_shard, in blocks--> ShardReport (hashes, faults, warnings)

Used by `verify`, and by `manifest` before it adopts a folder that others wrote. Places are byte ranges `a-b`, both included,
so that the bad part can be looked at or fetched again. Memory: some blocks of 8 MiB, however large the files.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.parallel import Advance
from smol_data.files import IDX_HEADER, TokenFiles
from smol_data.manifest import DataError, FileEntry, Manifest
from smol_data.open_files import OpenFiles

_BLOCK = 8 << 20  # bytes read at a time


@dataclass(frozen=True)
class ShardTask:
    """Files to be checked together: a shard with its index, or any other file alone."""

    folder: Path
    manifest: Manifest
    """Lists these files alone; an entry with an empty `sha256` is hashed and not compared."""
    quick: bool
    """Sizes and index only: no token is read, nothing is hashed."""


@dataclass
class ShardReport:
    """What was found."""

    sha256: dict[str, str] = field(default_factory=dict)
    """By file name; empty after a quick look."""
    faults: list[str] = field(default_factory=list)
    """One line each, beginning with the file's name."""
    warnings: list[str] = field(default_factory=list)
    eos_inside: int = 0
    """How often the EOS id stands where no document ends."""


def index_name(shard: str) -> str:
    """The name of a shard's index: `X.ds.index` or `X.idx`."""
    return f"{shard.removesuffix('.bin')}.idx" if shard.endswith(".bin") else f"{shard}.index"


def check_shard(task: ShardTask, advance: Advance) -> ShardReport:
    """Check the files of a task; `advance` counts bytes."""
    report = ShardReport()
    for entry in task.manifest.files:
        report.faults += _size_faults(task.folder / entry.name, entry)
    if report.faults:
        return report
    try:
        if task.manifest.shards:
            _check_tokens_and_index(task, report, advance)
        if not task.quick:
            _check_hashes(task, report, advance)
    except (DataError, OSError) as error:
        report.faults.append(str(error))
    return report


def _size_faults(path: Path, entry: FileEntry) -> Iterator[str]:
    if not path.is_file():
        yield f"{entry.name} is missing; copy it again"
    elif (size := path.stat().st_size) < entry.bytes:
        yield f"{entry.name} bytes {size}-{entry.bytes - 1} are missing; copy it again"
    elif size > entry.bytes:
        yield f"{entry.name} bytes {entry.bytes}-{size - 1} are more than the manifest lists; copy it again"


def _check_tokens_and_index(task: ShardTask, report: ShardReport, advance: Advance) -> None:
    """The index, then the tokens against it; a broken index says nothing about the tokens."""
    (shard,) = task.manifest.shards
    opened = OpenFiles()
    files = TokenFiles(task.folder, task.manifest, opened, name=str(task.folder))
    try:
        faults = _format_faults(files)
        if not faults or shard.name.endswith(".ds"):  # what is wrong inside the index says more than how it ends
            faults = list(_index_faults(files, shard, report.warnings)) or faults
        report.faults += faults
        if not task.quick:
            report.sha256[shard.name] = _TokenCheck(files, report, sound_index=not faults).run(advance)
    finally:
        opened.close()


def _format_faults(files: TokenFiles) -> list[str]:
    """The index's header, its last end, counts that do not fit the sizes."""
    try:
        files.check_sizes()
    except DataError as error:
        return [str(error)]
    return []


def _index_faults(files: TokenFiles, shard: FileEntry, warnings: list[str]) -> Iterator[str]:
    """Document ends must not descend, and must stop at the last token; of Megatron's three arrays, all must agree."""
    count, name, previous, empty = shard.documents or 0, index_name(shard.name), 0, 0
    at_once = _BLOCK // 8
    for first in range(0, count, at_once):
        ends = files.document_ends(0, first, min(at_once, count - first))
        lengths = np.diff(ends, prepend=previous)
        if (wrong := np.flatnonzero((lengths < 0) | (ends > (shard.tokens or 0)) | (ends < 0))).size:
            number = first + int(wrong[0])
            yield (
                f"{name} bytes {_end_bytes(shard, number)}: document {number} ends at token {ends[wrong[0]]}, before its "
                f"start or behind the shard's {shard.tokens} tokens"
            )
            return
        if shard.name.endswith(".bin"):
            yield from _megatron_faults(files, shard, first, lengths)
        empty += int((lengths == 0).sum())
        previous = int(ends[-1])
    if empty:
        warnings.append(f"{name}: {empty} documents have no tokens")


def _end_bytes(shard: FileEntry, number: int) -> str:
    """Where the end of a document stands in the index."""
    begins = 8 * number if shard.name.endswith(".ds") else IDX_HEADER + 4 * (shard.documents or 0) + 8 * (number + 1)
    return f"{begins}-{begins + 7}"


def _megatron_faults(files: TokenFiles, shard: FileEntry, first: int, lengths: NDArray[np.int64]) -> Iterator[str]:
    """The lengths and the document index of a `.idx`, against the documents that its offsets make."""
    count, name = shard.documents or 0, index_name(shard.name)
    path = str(files.folder / name)
    begins = IDX_HEADER + 4 * first
    stored = files.read_items(path, np.dtype("<i4"), begins, len(lengths))
    if (wrong := np.flatnonzero(stored != lengths)).size:
        at, number = begins + 4 * int(wrong[0]), first + int(wrong[0])
        yield f"{name} bytes {at}-{at + 3}: sequence {number} has {stored[wrong[0]]} tokens, by its offsets {lengths[wrong[0]]}"
    begins = IDX_HEADER + 12 * count + 8 * first
    numbers = files.read_items(path, np.dtype("<i8"), begins, len(lengths) + 1)
    if (wrong := np.flatnonzero(numbers != np.arange(first, first + len(numbers)))).size:
        at, number = begins + 8 * int(wrong[0]), first + int(wrong[0])
        yield (
            f"{name} bytes {at}-{at + 7}: document {number} begins with sequence {numbers[wrong[0]]}; one sequence a document "
            "is needed: run Megatron's preprocessing without --split-sentences"
        )


@dataclass
class _Tally:
    """How often something was found, and where first."""

    count: int = 0
    first: str = ""

    def add(self, places: NDArray[Any], describe: Callable[[int], str]) -> None:
        if len(places) and not self.count:
            self.first = describe(int(places[0]))
        self.count += len(places)


class _TokenCheck:
    """One pass over a shard's tokens: hash, ids in range, EOS where documents end and nowhere else, chunk borders."""

    def __init__(self, files: TokenFiles, report: ShardReport, sound_index: bool) -> None:
        self.files, self.report, self.sound_index = files, report, sound_index
        self.manifest, (self.shard,) = files.manifest, files.shards
        self.outside, self.no_eos, self.inside, self.uncut = _Tally(), _Tally(), _Tally(), _Tally()

    def run(self, advance: Advance) -> str:
        """Adds to the report; returns the SHA-256."""
        digest, item = hashlib.sha256(), self.files.dtype.itemsize
        tokens, at_once = self.shard.tokens or 0, _BLOCK // item
        for first in range(0, tokens, at_once):
            ids = self.files.tokens(first, min(at_once, tokens - first))
            digest.update(ids.data)
            self._block(ids, first)
            advance(len(ids) * item)
        self._tell()
        return digest.hexdigest()

    def _block(self, ids: NDArray[Any], first: int) -> None:
        size, eos, chunk = self.manifest.vocab_size, self.manifest.eos_id, self.manifest.window_tokens
        if int(ids.max()) >= size:
            self.outside.add(np.flatnonzero(ids >= size), lambda at: f"{self._bytes(first + at)}: id {ids[at]}")
        if not self.sound_index:
            return
        ends = self.files.ends_between(first, first + len(ids))
        if chunk:
            cuts = np.arange(first // chunk + 1, (first + len(ids)) // chunk + 1) * chunk
            self.uncut.add(cuts[~np.isin(cuts, ends)], lambda cut: f"token {cut}")
        if eos is not None:
            is_eos = ids == eos
            ended = is_eos[ends - first - 1]
            wanted = ends[~ended] if not chunk else ends[~ended & (ends % chunk != 0)]
            self.no_eos.add(wanted - 1, lambda at: f"{self._bytes(at)}: a document ends with id {ids[at - first]}")
            if np.count_nonzero(is_eos) > np.count_nonzero(ended):
                is_eos[ends - first - 1] = False
                self.inside.add(np.flatnonzero(is_eos) + first, self._bytes)

    def _tell(self) -> None:
        manifest, name = self.manifest, self.shard.name
        if self.outside.count:
            self.report.faults.append(
                f"{name} {self.outside.first} is not below vocab_size {manifest.vocab_size}; {self.outside.count} such ids"
            )
        if self.no_eos.count:
            self.report.faults.append(
                f"{name} {self.no_eos.first}, not with EOS {manifest.eos_id}; {self.no_eos.count} such ends"
            )
        if self.uncut.count or (manifest.window_tokens and (self.shard.tokens or 0) % manifest.window_tokens):
            where = f"no document ends at {self.uncut.first}" if self.uncut.count else "the last chunk is cut short"
            self.report.faults.append(
                f"{name} is not made of chunks of window_tokens={manifest.window_tokens}: {where}, {self.uncut.count} such cuts"
            )
        if self.inside.count:
            # A reader that was promised EOS at the ends alone takes documents from the tokens; others go by the index.
            lines = self.report.faults if manifest.eos_ends_documents else self.report.warnings
            lines.append(f"{name} {self.inside.first}: EOS {manifest.eos_id} inside a document, {self.inside.count} times")
        self.report.eos_inside = self.inside.count

    def _bytes(self, token: int) -> str:
        item = self.files.dtype.itemsize
        return f"bytes {token * item}-{token * item + item - 1}"


def _check_hashes(task: ShardTask, report: ShardReport, advance: Advance) -> None:
    """Hash what the pass over the tokens did not; compare all with the manifest."""
    for entry in task.manifest.files:
        if entry.name not in report.sha256:
            report.sha256[entry.name] = _hash(task.folder / entry.name, advance)
        found = report.sha256[entry.name]
        known = any(fault.startswith(f"{entry.name} ") for fault in report.faults)
        if entry.sha256 and found != entry.sha256 and not known:
            report.faults.append(
                f"{entry.name} bytes 0-{max(0, entry.bytes - 1)}: some byte changed (SHA-256 is {found}, in the manifest "
                f"{entry.sha256}); copy it again"
            )


def _hash(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
