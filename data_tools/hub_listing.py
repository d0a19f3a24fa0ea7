"""The list of a dataset's files, fixed when they are first fetched: what `prepare` goes on from.

Written as DIR/NAME/.listing.json beside the text by hub_files.py. A later call goes on from it without asking the Hub what it
has now: so a download that took days is of one commit, and one that is whole needs no network.
"""

import json
import re
from pathlib import Path

from smol_config import Section, parse

LISTING = ".listing.json"
MIRROR = "mirror"
"""Stands for the commit of files that come from a folder on disk."""


class HubFile(Section):
    """One file of a repository."""

    path: str
    """Inside the repository."""
    bytes: int
    sha256: str | None = None
    """Known of large files (LFS)."""


class Listing(Section):
    """The files of a dataset, fixed at the first call."""

    repository: str
    revision: str
    """As the catalogue says."""
    commit: str
    """What the revision meant when the list was made; MIRROR for a folder on disk."""
    patterns: list[str]
    max_gigabytes: int | None = None
    files: list[HubFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def missing(self, folder: Path) -> list[HubFile]:
        """The files that are not in `folder` in their full size."""
        return [file for file in self.files if not has_file(folder / file.path, file.bytes)]


def kept_listing(folder: Path) -> Listing | None:
    """The list that was written down in `folder`; None when there is none."""
    path = folder / LISTING
    if not path.is_file():
        return None
    return parse(Listing, json.loads(path.read_text(encoding="utf8")), source=str(path))


def spaced(files: list[HubFile], budget: int) -> list[HubFile]:
    """Evenly spaced files of at most `budget` bytes in all; at least one, whatever its size."""
    count = len(files)
    while count > 1:
        chosen = [files[index * len(files) // count] for index in range(count)]
        total = sum(file.bytes for file in chosen)
        if total <= budget:
            return chosen
        count = min(count - 1, max(1, int(count * budget / total)))
    return files[:1]


def glob_to_regex(pattern: str) -> str:
    """A regular expression of the paths that a pattern means: `*` and `?` stay inside a folder, `**/` spans any depth."""
    parts = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def has_file(path: Path, size: int) -> bool:
    """Whether a file is there in this size."""
    return path.is_file() and path.stat().st_size == size
