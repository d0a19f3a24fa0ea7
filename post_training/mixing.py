"""All sources of a mixture scanned, and what is drawn of them. Between scan.py (one file) and prepare.py (the result)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.parallel import run_tasks
from post_training.config import PreparationConfig, Source
from post_training.mixture import RowChoice, draw, times_for_tokens
from post_training.scan import GROUPS, MODES, Rules, Scanned, ScanTask, Tally, read_spool, scan
from post_training.sources import FoundSource
from smol_console import Progress


@dataclass(frozen=True)
class Counts:
    """What became of a source's rows."""

    total: int
    """Rows of the source."""
    rows: int
    """Rows that its share takes, each once."""
    tallies: dict[str, dict[str, Tally]]
    """As in scan.Scanned."""
    stands_for: float = 1.0
    """How many rows each row looked at stands for: more than one where preview looks at some."""


@dataclass
class Mixed:
    """The samples of all sources, one after the other, and how often each is drawn. Arrays have one entry a sample."""

    kind: Literal["tokens", "preference", "prompts"]
    sources: list[Source]
    counts: dict[str, Counts]
    lengths: NDArray[np.int32]
    trained: NDArray[np.int32]
    modes: NDArray[np.uint8]
    texts: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    times: NDArray[np.int64]
    order: NDArray[np.int64]
    """The samples drawn, in the order of training."""
    _files: list[Scanned]
    _source_of_file: list[str]
    _starts: NDArray[np.int64]
    """Number of each file's first sample."""

    def of(self, name: str) -> NDArray[np.bool_]:
        """Which samples are of a source."""
        sizes = np.diff(self._starts)
        return np.repeat([owner == name for owner in self._source_of_file], sizes)

    def where(self, sample: int) -> str:
        """The dataset of a sample."""
        return f"dataset {self.dataset(sample)}"

    def dataset(self, sample: int) -> str:
        """The name of a sample's source."""
        return self._source_of_file[self._file(sample)]

    def read(self, samples: Sequence[int]) -> Iterator[bytes]:
        """What the spools hold of these samples; memory for one at a time."""
        places = [(file, sample - int(self._starts[file])) for sample in samples for file in [self._file(sample)]]
        return read_spool(self._files, places)

    def _file(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    @property
    def trained_share(self) -> float:
        """Of the tokens drawn."""
        return float((self.trained * self.times).sum() / max(1, (self.lengths * self.times).sum()))

    def statistics(self) -> list[dict[str, Any]]:
        """Per dataset and mode: samples there and drawn, tokens and trained tokens drawn, shares, lengths."""
        rows: list[dict[str, Any]] = []
        for source in self.sources:
            scale = self.counts[source.name].stands_for
            for number, mode in enumerate(MODES):
                here = self.of(source.name) & (self.modes == number)
                if not here.any():
                    continue
                times, lengths, trained = self.times[here], self.lengths[here], self.trained[here]
                tokens, targets = int((times * lengths).sum()), int((times * trained).sum())
                rows.append(
                    {
                        "dataset": source.name,
                        "mode": mode,
                        "samples": round(here.sum() * scale),
                        "drawn": round(times.sum() * scale),
                        "tokens": round(tokens * scale),
                        "trained": round(targets * scale),
                        "trained_share": targets / tokens if tokens else 0.0,
                        "median_length": float(np.median(lengths)),
                        "longest": int(lengths.max()),
                    }
                )
        for column in ("tokens", "trained"):
            total = sum(row[column] for row in rows) or 1
            for row in rows:
                row[f"share_of_{column}"] = row[column] / total
        return rows


def mix(config: PreparationConfig, found: Sequence[FoundSource], folder: Path, limit: int | None = None) -> Mixed:
    """Scan the sources into spools in `folder` and draw; `limit` rows of each at most. Raises UserError as scan.py does."""
    data = config.data
    rules = Rules(config.model, data.template, data.today, data.loss_on, data.max_length)
    tasks: list[ScanTask] = []
    for one in found:
        choice = RowChoice(one.source.name, sum(one.rows), one.source.share or 1.0, data.seed, limit)
        first = 0
        for number, (file, rows) in enumerate(zip(one.files, one.rows, strict=True)):
            spool = folder / f"{one.source.name}-{number:05d}.spool"
            tasks.append(ScanTask(one.source, file, choice, first, rows, rules, spool))
            first += rows
    choices = {task.source.name: task.choice for task in tasks}
    with Progress("preparing", "rows", total=sum(choice.rows for choice in choices.values())) as progress:
        files = list(run_tasks(scan, tasks, data.workers, progress))
    return _mixed(config, found, tasks, files)


def _mixed(config: PreparationConfig, found: Sequence[FoundSource], tasks: list[ScanTask], files: list[Scanned]) -> Mixed:
    owners = [task.source.name for task in tasks]
    counts = {}
    for one in found:
        own = [file for file, owner in zip(files, owners, strict=True) if owner == one.source.name]
        tallies = {group: _added([file.tallies[group] for file in own]) for group in GROUPS}
        choice = next(task.choice for task in tasks if task.source.name == one.source.name)
        stands_for = replace(choice, limit=None).rows / max(1, choice.rows)
        counts[one.source.name] = Counts(sum(one.rows), sum(file.rows for file in own), tallies, stands_for)
    columns = {
        name: np.concatenate([getattr(file, name) for file in files])
        for name in ("lengths", "trained", "modes", "texts", "prompts")
    }
    times = np.concatenate([file.times for file in files]).astype(np.int64)
    starts = np.cumsum([0, *(len(file.lengths) for file in files)])
    mixed = Mixed(
        config.data.kind,
        [one.source for one in found],
        counts,
        **columns,
        times=times,
        order=times,
        _files=files,
        _source_of_file=owners,
        _starts=starts,
    )
    for one in found:
        here = mixed.of(one.source.name)
        if one.source.tokens and here.any():
            asked = round(one.source.tokens / counts[one.source.name].stands_for)
            times[here] = times_for_tokens(asked, mixed.lengths[here], config.data.seed, one.source.name)
    mixed.order = draw(times, config.data.seed)
    return mixed


def _added(tallies: Sequence[dict[str, Tally]]) -> dict[str, Tally]:
    """Counts of several files; the first example stays."""
    total: dict[str, Tally] = {}
    for one in tallies:
        for kind, tally in one.items():
            before = total.get(kind)
            total[kind] = Tally(before.rows + tally.rows, before.first) if before else tally
    return total
