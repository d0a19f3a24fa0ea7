"""Folders in places without commits, such as S3: a manifest says which files belong to a folder and that it is whole.

    TARGET/...                  the files
    TARGET/upload.json          {"files": {NAME: {"bytes": 12, "sha256": "ab.."}, ..}}, written last: the folder is whole
    TARGET/upload.partial.json  the same while an upload is under way: what has arrived so far

An upload that changes a whole folder first writes what stays into upload.partial.json and then takes upload.json away, so that
no moment has a manifest beside files that it does not describe. A file counts as there when one of the two names it and it has
the size that they say; hashes are those of the files that were sent. Only files named there are ever removed: whatever else
lies under TARGET is not touched. One upload at a time may go to a target.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from conversion import ConversionError, Unreachable
from conversion.upload.flow import upload
from conversion.upload.local_files import LocalFile, local_files
from conversion.upload.store import Difference, Listing, Pushed, Remote

MANIFEST, UNFINISHED = "upload.json", "upload.partial.json"
GIBIBYTE = 2**30


class Objects(Protocol):
    """A place that keeps bytes under names below the target. Anything may raise Unreachable or ConversionError."""

    url: str

    def sizes(self) -> dict[str, int]:
        """Bytes of everything below the target; empty when nothing is there."""

    def read(self, name: str) -> bytes | None:
        """What is kept under a name; None: nothing."""

    def write(self, name: str, content: bytes) -> None:
        """Keep a few bytes."""

    def send(self, files: Sequence[LocalFile]) -> None:
        """Keep these files under their names, several at a time where that is faster."""

    def fetch(self, sizes: Mapping[str, int], folder: Path) -> None:
        """Write what is kept under these names, of so many bytes, below a folder, whose sub-folders are there."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove what is there of these."""


class ObjectStore:
    """A folder in such a place: a store.Store."""

    batch_bytes = GIBIBYTE

    def __init__(self, objects: Objects) -> None:
        self.url = objects.url
        self._objects = objects
        self._marked = False
        self._arrived: dict[str, Remote] = {}
        self._obsolete: Sequence[str] = ()

    def prepare(self) -> None:
        """Nothing: a prefix needs no making, and buckets are not made."""

    def listing(self) -> Listing:
        """The files that a manifest names, with their hashes."""
        sizes = self._objects.sizes()
        self._marked = MANIFEST in sizes
        manifest = self._read(MANIFEST, sizes)
        named = self._read(UNFINISHED, sizes) if manifest is None else manifest
        files = {name: entry for name, entry in (named or {}).items() if sizes.get(name) == entry.size}
        # What has another size is still ours: to be replaced, or removed when the folder has it no more.
        files |= {name: Remote(sizes[name]) for name in (named or {}).keys() - files.keys() if name in sizes}
        return Listing(files, whole=manifest is not None and UNFINISHED not in sizes)

    def manifest(self) -> dict[str, Remote] | None:
        """What the folder holds, where it is whole: a manifest, and everything it names in the size it says; else None."""
        sizes = self._objects.sizes()
        manifest = self._read(MANIFEST, sizes)
        return None if manifest is None or _misfits(manifest, sizes) else manifest

    def fetch(self, entries: Mapping[str, Remote], folder: Path) -> None:
        """Write some of a manifest's files below a folder."""
        self._objects.fetch({name: entry.size for name, entry in entries.items()}, folder)

    def begin(self, difference: Difference) -> None:
        """Note what stays, then take the mark away that the folder is whole."""
        self._arrived = {file.name: Remote(file.size, file.sha256) for file in difference.kept}
        self._obsolete = difference.obsolete
        self._write(UNFINISHED)
        if self._marked:
            self._objects.remove([MANIFEST])

    def send(self, files: Sequence[LocalFile]) -> None:
        """Send files and note that they have arrived."""
        self._objects.send(files)
        self._arrived |= {file.name: Remote(file.size, file.sha256) for file in files}
        self._write(UNFINISHED)

    def finish(self) -> None:
        """Remove what is obsolete, compare all sizes, and only then write the manifest."""
        if self._obsolete:
            self._objects.remove(self._obsolete)
        if misfits := _misfits(self._arrived, self._objects.sizes()):
            raise Unreachable(f"{self.url} does not hold what was sent: {'; '.join(misfits[:3])}; {len(misfits)} in all")
        self._write(MANIFEST)
        self._objects.remove([UNFINISHED])

    def _read(self, name: str, sizes: dict[str, int]) -> dict[str, Remote] | None:
        """A manifest's entries; None when there is none, or one that was cut off while it was written."""
        content = self._objects.read(name) if name in sizes else None
        try:
            entries = json.loads(content or b"")["files"]
            return {str(name): Remote(int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def _write(self, name: str) -> None:
        entries = {name: {"bytes": file.size, "sha256": file.sha256} for name, file in sorted(self._arrived.items())}
        self._objects.write(name, json.dumps({"files": entries}, indent=1).encode() + b"\n")


def _misfits(entries: dict[str, Remote], sizes: dict[str, int]) -> list[str]:
    wrong = [(name, entry.size, sizes.get(name)) for name, entry in entries.items() if sizes.get(name) != entry.size]
    return [
        f"{name} has {size} bytes and not {want}" if size is not None else f"{name} is not there" for name, want, size in wrong
    ]


def open_objects(target: str) -> Objects:
    """The place that a URL means; raises ConversionError for one that cannot be used."""
    # They import their programs and packages: one of them is enough.
    if target.startswith("s3://"):
        from conversion.upload.s5cmd import S5cmd

        return S5cmd(target)
    from conversion.upload.fsspec_files import FsspecFiles

    return FsspecFiles(target)


def open_store(target: str, files: Sequence[LocalFile] = ()) -> ObjectStore:
    """The store of a URL; raises ConversionError for one that cannot be used, or files that cannot be kept there."""
    for file in files:
        if file.name in (MANIFEST, UNFINISHED):
            raise ConversionError(f"{file.path} has the name of the manifest that is kept at {target}; rename it")
    return ObjectStore(open_objects(target))


def upload_folder(folder: Path, target: str) -> Pushed:
    """Make `target`, a URL such as s3://bucket/prefix, hold every file of `folder`: sizes compared, hashes in its manifest.

    What is there already is not sent again, so a call after a kill goes on where the first was stopped. Raises
    ConversionError for a folder or a target that cannot be used, Unreachable when a later call may succeed.
    """
    files = local_files(folder)
    return upload(files, open_store(target, files))


def is_complete(target: str) -> bool:
    """Whether `target` holds a whole folder: a manifest and every file it names, in its size. Raises as upload_folder()."""
    return open_store(target).manifest() is not None
