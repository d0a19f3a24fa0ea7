"""What a place for folders must be able to do, and how a folder and such a place are compared.

A store keeps one folder: a branch of a Hub repository, a prefix of a bucket. flow.py calls it in this order:

    prepare()            make the place
    listing()            what is there
    begin(difference)    what will change
    send(files)          as often as needed
    finish()             make the change whole, and visible as such

Any of them may raise Unreachable. The flow then starts over at prepare(), on the same store, so each must be fit to be
called again. ConversionError means that a second try would fail as the first did.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from conversion.upload.local_files import LocalFile


class Remote(NamedTuple):
    """A file at the place, and its hash as far as the place knows one."""

    size: int
    """Bytes."""
    sha256: str | None = None
    git_blob: str | None = None
    """SHA-1 of git's blob: what a repository knows of files that are not large ones."""


@dataclass(frozen=True)
class Listing:
    """What a place holds of the folder's files and of those that an earlier upload left."""

    files: dict[str, Remote] = field(default_factory=dict)
    whole: bool = False
    """Whether the place is marked as finished. Even with all files in it, one that is not needs finish()."""
    commit: str | None = None
    """The branch's commit, on the Hub."""
    note: str | None = None
    """What prepare() would make."""


@dataclass(frozen=True)
class Difference:
    """What must happen so that the place holds the folder."""

    new: Sequence[LocalFile]
    """To be sent, the largest first."""
    kept: Sequence[LocalFile]
    """There already, byte for byte."""
    obsolete: Sequence[str]
    """To be removed: names of files that are not in the folder."""


@dataclass(frozen=True)
class Pushed:
    """What an upload did."""

    url: str
    """Where the folder is now."""
    commit: str | None
    """The branch's commit, on the Hub."""
    files: int
    """How many files the place lacked. Whole files that an interrupted upload left are counted, though not sent again."""
    bytes: int
    """Their size."""
    changed: bool
    """Whether anything was sent, removed, tagged or marked as finished."""


class Store(Protocol):
    """A place for one folder."""

    url: str
    batch_bytes: int
    """How much send() is given at a time; a larger file comes alone. What was given before survives a kill."""

    def prepare(self) -> None:
        """Make the place where it is missing. Raises ConversionError when that is not allowed."""

    def listing(self) -> Listing:
        """What is there; changes nothing, and does not need prepare()."""

    def begin(self, difference: Difference) -> None:
        """Get ready for a change; the folder at the place may not count as whole from here to the end of finish()."""

    def send(self, files: Sequence[LocalFile]) -> None:
        """Send some of the difference's new files; returns once they have arrived."""

    def finish(self) -> str | None:
        """Remove what is obsolete, check what arrived and make it count; returns the commit, on the Hub."""


def compare(files: Sequence[LocalFile], listing: Listing) -> Difference:
    """What distinguishes the folder from the place. Hashes files whose size is the same there, unless that was done."""
    same = {file.name for file in files if _same(file, listing.files.get(file.name))}
    names = {file.name for file in files}
    return Difference(
        new=sorted((file for file in files if file.name not in same), key=lambda file: (-file.size, file.name)),
        kept=[file for file in files if file.name in same],
        obsolete=sorted(listing.files.keys() - names),
    )


def _same(file: LocalFile, remote: Remote | None) -> bool:
    if remote is None or remote.size != file.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    return remote.git_blob is not None and remote.git_blob == file.git_blob
