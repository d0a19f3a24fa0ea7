"""How long the documents of token datasets are: histograms with logarithmic bins, read from the indexes alone.

Behind `stats`. No token is read. An index is read in blocks, and ranges of documents are shared among processes, so memory
is the same for a thousand documents and for a thousand million.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.parallel import Advance, run_tasks
from smol_console import Progress
from smol_data.files import TokenFiles
from smol_data.manifest import Manifest, read_manifest
from smol_data.open_files import OpenFiles

THRESHOLDS = (4096, 32768, 65536)
"""Documents longer than these are counted exactly: SmolLM3's three context lengths."""
EDGES: NDArray[np.int64] = np.unique(np.concatenate([[0], np.round(2 ** (np.arange(0, 40 * 8 + 1) / 8))]).astype(np.int64))
"""Lower ends of the bins: eight a doubling where whole numbers allow it, so a bin is at most 9 % wide. The last is open."""

BLOCK = 1 << 17  # document ends read at a time: 1 MiB
PER_TASK = 1 << 24  # documents that one process takes at a time


@dataclass
class Lengths:
    """Document lengths, in tokens."""

    documents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES), dtype=np.int64))
    """Of each bin."""
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES), dtype=np.int64))
    """In the documents of each bin."""
    longer: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(THRESHOLDS), 2), dtype=np.int64))
    """Documents and tokens of the documents longer than each of THRESHOLDS."""
    shortest: int | None = None
    longest: int | None = None

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count documents of these lengths."""
        if not len(lengths):
            return
        bins = np.searchsorted(EDGES, lengths, side="right") - 1
        order = np.argsort(bins, kind="stable")
        starts = np.flatnonzero(np.diff(bins[order], prepend=-1))  # integer sums by bin: bincount's weights are floats
        self.documents += np.bincount(bins, minlength=len(EDGES))
        self.tokens[bins[order][starts]] += np.add.reduceat(lengths[order], starts)
        for place, threshold in enumerate(THRESHOLDS):
            above = lengths[lengths > threshold]
            self.longer[place] += (len(above), above.sum())
        self._widen(int(lengths.min()), int(lengths.max()))

    def merge(self, other: "Lengths") -> None:
        """Count what another one has counted."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.longer += other.longer
        if other.shortest is not None and other.longest is not None:
            self._widen(other.shortest, other.longest)

    @property
    def mean(self) -> float:
        return float(self.tokens.sum() / max(1, self.documents.sum()))

    def quantile(self, share: float) -> float:
        """The length that this share of the documents does not exceed, to within a bin (9 %)."""
        total = self.documents.sum()
        if not total:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self.documents), share * total))
        upper = EDGES[at + 1] - 1 if at + 1 < len(EDGES) else self.longest or 0
        return float(min(max((EDGES[at] + upper) / 2, self.shortest or 0), self.longest or 0))

    def _widen(self, shortest: int, longest: int) -> None:
        self.shortest = shortest if self.shortest is None else min(self.shortest, shortest)
        self.longest = longest if self.longest is None else max(self.longest, longest)


@dataclass(frozen=True)
class LengthTask:
    """Documents [first, stop) of a dataset, counted over all its shards."""

    folder: Path
    first: int
    stop: int


def measure(folders: Sequence[Path], workers: int) -> list[tuple[Manifest, Lengths]]:
    """Manifest and document lengths of each dataset folder; raises DataError for a folder that is no whole token dataset."""
    manifests = []
    for folder in folders:
        manifest = read_manifest(folder)
        files = OpenFiles()
        TokenFiles(folder, manifest, files).check_sizes()
        files.close()
        manifests.append(manifest)
    tasks = [
        LengthTask(folder, first, min(first + PER_TASK, manifest.documents))
        for folder, manifest in zip(folders, manifests, strict=True)
        for first in range(0, manifest.documents, PER_TASK)
    ]
    found = {folder: Lengths() for folder in folders}
    total = sum(manifest.documents for manifest in manifests)
    workers = min(workers, 1 + total // PER_TASK)  # starting a process takes as long as counting some million documents
    with Progress("reading indexes", "documents", total=total) as progress:
        for task, lengths in zip(tasks, run_tasks(count, tasks, workers, progress), strict=True):
            found[task.folder].merge(lengths)
    return [(manifest, found[folder]) for folder, manifest in zip(folders, manifests, strict=True)]


def count(task: LengthTask, advance: Advance) -> Lengths:
    """The lengths of a task's documents."""
    files = OpenFiles()
    tokens = TokenFiles(task.folder, read_manifest(task.folder), files)
    found = Lengths()
    for shard, (start, stop) in enumerate(zip(tokens.document_starts[:-1], tokens.document_starts[1:], strict=True)):
        first, last = max(task.first, start) - start, min(task.stop, stop) - start
        before = int(tokens.document_ends(shard, first - 1, 1)[0]) if 0 < first < last else 0
        for at in range(first, last, BLOCK):
            ends = tokens.document_ends(shard, at, min(BLOCK, last - at))
            found.add(np.diff(ends, prepend=before))
            before = int(ends[-1])
            advance(len(ends))
    files.close()
    return found
