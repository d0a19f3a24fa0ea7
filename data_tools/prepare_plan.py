"""What `prepare` has to do for each dataset of a run, worked out without the network and without changing anything.

A dataset of a configuration is one Job: text to get, tokens to make from it for training (data.datasets) and for evaluation
(data.held_out). What a finished folder was made from stands beside it, in NAME.source.json: the text may be gone by then.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_tools.catalogue import Catalogue, CatalogueEntry, Rule
from data_tools.hub_listing import Listing, kept_listing
from data_tools.run_config import DataRun
from smol_config import Section, UserError, nearest, parse
from smol_console import short, table
from smol_data.manifest import MANIFEST_NAME, read_manifest
from smol_files import write_whole

Side = Literal["train", "held_out"]


class Source(Section):
    """From which documents a token dataset was made: NAME.source.json beside its folder."""

    repository: str | None = None
    """Null: the dataset is not in the catalogue."""
    revision: str | None = None
    commit: str | None = None
    """Null: the text was not fetched but the user's own."""
    files: list[str] = Field(default_factory=list)
    """Patterns."""
    max_gigabytes: int | None = None
    text_key: str
    filter: list[Rule] = Field(default_factory=list)
    licence: str | None = None
    side: Side
    held_out_share: float
    seed: int


@dataclass(frozen=True)
class Job:
    """One dataset of the run."""

    name: str
    entry: CatalogueEntry | None
    """Of the catalogue; None when it is not in it."""
    text: Path
    """Where its text lies or will lie."""
    targets: dict[Side, Path]
    """Folders of tokens to make."""
    read: float
    """Tokens that the run reads of it."""

    @property
    def todo(self) -> dict[Side, Path]:
        """The targets that are not finished."""
        return {side: folder for side, folder in self.targets.items() if not (folder / MANIFEST_NAME).exists()}

    @property
    def listing(self) -> Listing | None:
        """The list of the text's files, once it was fetched."""
        return kept_listing(self.text)

    @property
    def has_own_text(self) -> bool:
        """Whether the user has put text there."""
        if self.listing is not None or not self.text.is_dir():
            return False
        return any(not path.name.startswith(".") for path in self.text.iterdir())

    @property
    def state(self) -> str:
        """`finished`, `text is here`, `fetch`, or `not preparable`."""
        if not self.todo:
            return "finished"
        if self.has_own_text or ((listing := self.listing) and not listing.missing(self.text)):
            return "text is here"
        return "fetch" if self.entry and self.entry.can_be_prepared else "not preparable"

    @property
    def obstacle(self) -> str:
        """Why a dataset is not preparable, and what to do; the same sentence for datasets of one kind."""
        folder = f"{self.text.parent}/NAME"
        if self.entry is None:
            return f"not in the catalogue; add it there, or put its text into {folder}"
        why = "its content is not published" if not self.entry.published else "its repository holds no text to be read as it is"
        note = f" ({self.entry.note})" if self.entry.note else ""
        return f"{why}{note}; put its text, assembled, into {folder}, or give it weight 0"


def plan_jobs(run: DataRun, catalogue: Catalogue | None, text_root: Path, chosen: Sequence[str] | None) -> list[Job]:
    """The jobs of the datasets that the run reads or evaluates on, or of the `chosen` ones; raises UserError on a bad name."""
    data, read = run.data, run.tokens_by_dataset()
    known = {**data.datasets, **data.held_out}
    if unknown := [name for name in chosen or () if name not in known]:
        raise UserError(f"--datasets {unknown[0]}: not in data.datasets or data.held_out; {nearest(unknown[0], known)}")
    jobs = []
    for name in chosen or [name for name in known if name in read or name in data.held_out]:
        targets: dict[Side, Path] = {}
        if name in data.datasets:
            targets["train"] = Path(data.datasets[name])
        if name in data.held_out:
            targets["held_out"] = Path(data.held_out[name])
        if len(targets) > len(set(targets.values())):
            raise UserError(f"data.held_out.{name} is the folder that data.datasets.{name} trains on; give it one of its own")
        jobs.append(Job(name, catalogue.get(name) if catalogue else None, text_root / name, targets, read.get(name, 0.0)))
    return jobs


# --- what a folder was made from -----------------------------------------------------------------------------------------


def source_file(folder: Path) -> Path:
    """Where the source of a token dataset is written down."""
    return folder.with_name(f"{folder.name}.source.json")


def check_source(folder: Path, source: Source) -> None:
    """Raise UserError when a finished folder was made from other documents; one without a record is taken as it is.

    The commit is not compared: what the catalogue calls `main` may have moved on, the folder is still what it was.
    """
    path = source_file(folder)
    if not (folder / MANIFEST_NAME).exists() or not path.exists():
        return
    former = parse(Source, json.loads(path.read_text(encoding="utf8")), source=str(path))
    for name in Source.model_fields:
        if name not in ("commit", "licence") and (was := getattr(former, name)) != (now := getattr(source, name)):
            raise UserError(
                f"{folder} was made with {name} {was!r}, asked for is {now!r}; ask for the former again, or remove the folder"
            )


def write_source(folder: Path, source: Source) -> None:
    """Write down the source of a folder, before it is made: a folder that is finished has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(source_file(folder), source.model_dump_json(indent=2) + "\n")


# --- showing -------------------------------------------------------------------------------------------------------------


def plan_table(jobs: Sequence[Job], token_size: int, max_gigabytes: int | None) -> str:
    """A line a dataset: what is to be done, download, tokens, disk, what the run reads of it, licence; and the sums.

    `token_size` is in bytes. Sizes are those of the list of files or the manifest where there is one, else the catalogue's.
    """
    rows, downloads, disks = [], [], []
    for job in jobs:
        entry, state = job.entry, job.state
        download, tokens = _download(job, max_gigabytes), _tokens(job, max_gigabytes)
        disk = tokens * token_size / 1e9 if tokens is not None else None
        if state in ("fetch", "text is here"):
            downloads.append(download)
            disks.append(disk)
        where = f"{entry.repository or '-'}{f' ({entry.subset})' if entry.subset else ''}" if entry else "-"
        licence = (entry.licence if entry else None) or "?"
        rows.append([job.name, state, where, _gigabytes(download), short(tokens), _gigabytes(disk), short(job.read), licence])
    header = ["dataset", "state", "repository (subset)", "download", "tokens", "on disk", "run reads", "licence"]
    sums = ["to do", "", "", _sum(downloads), "", _sum(disks), "", ""]
    return table(header, [*rows, sums], left=3)


def space_lines(jobs: Sequence[Job], text_root: Path) -> list[str]:
    """Free space where text and tokens will lie, a line a file system."""
    places = {"text": text_root, **{f"tokens of {job.name}": folder for job in jobs for folder in job.todo.values()}}
    lines: dict[int, str] = {}
    for what, place in places.items():
        there = next(folder for folder in [place.absolute(), *place.absolute().parents] if folder.exists())
        free = shutil.disk_usage(there).free
        lines.setdefault(there.stat().st_dev, f"free where {what} will lie ({there}): {free / 1e9:,.0f} GB")
    return list(lines.values())


def _download(job: Job, max_gigabytes: int | None) -> float | None:
    """Gigabytes still to fetch; None where nobody says."""
    if job.state != "fetch":
        return 0.0
    if (listing := job.listing) is not None:
        return sum(file.bytes for file in listing.missing(job.text)) / 1e9
    size = job.entry.gigabytes if job.entry else None
    if max_gigabytes is None:
        return size
    return max_gigabytes if size is None else min(size, max_gigabytes)


def _tokens(job: Job, max_gigabytes: int | None) -> float | None:
    """From the manifest, else the catalogue, of the part that is fetched; None where nobody says."""
    folder = job.targets.get("train")
    if folder is not None and (folder / MANIFEST_NAME).exists():
        return read_manifest(folder).tokens
    if job.entry is None or job.entry.tokens is None or max_gigabytes is None:
        return job.entry.tokens if job.entry else None
    return job.entry.tokens * min(1.0, max_gigabytes / job.entry.gigabytes) if job.entry.gigabytes else None


def _gigabytes(size: float | None) -> str:
    return "?" if size is None else f"{size:,.1f} GB" if size else "-"


def _sum(sizes: Sequence[float | None]) -> str:
    """The sum of what is known, marked where something is not."""
    known = [size for size in sizes if size is not None]
    return f"{sum(known):,.1f} GB{' + ?' if len(known) < len(sizes) else ''}"
