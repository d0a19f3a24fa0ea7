"""The folder on a node's own disk: what is there, what is missing, room for it, and the marks of what was done."""

import json
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from humanize import naturalsize

from slurm.staging.needs import StagingError
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, sha256_of_file
from smol_files import write_whole
from smol_train.checkpoint_folder import free_bytes

MARK = "staged.json"
PARTIAL = ".partial"
THREADS = 8
"""Files hashed or copied at a time."""
ROOM = 1.02
"""Times the bytes of the files: the file system's own blocks take a little."""


@dataclass(frozen=True)
class Mark:
    """What staged.json says of its folder."""

    digest: str
    """Of the manifest by which files were verified: those that have their names are right, others may be missing."""
    made: bool
    """This program made the folder, so it may remove it."""


class Disk:
    """SMOL_LOCAL_DATA on this node."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mark(self, name: str) -> Mark | None:
        """None: the folder is not of this program, or not there."""
        try:
            return Mark(**json.loads((self.root / name / MARK).read_text(encoding="utf8")))
        except (OSError, ValueError, TypeError):
            return None

    def holds(self, name: str) -> bool:
        """Whether something other than a link is there."""
        path = self.root / name
        return path.exists() and not path.is_symlink()

    def is_whole(self, name: str) -> bool:
        """Whether the dataset was finished here; its files are not looked at."""
        return self.holds(name) and self.mark(name) is not None and (self.root / name / MANIFEST_NAME).exists()

    def missing(self, name: str, manifest: Manifest, thorough: bool = False) -> list[FileEntry]:
        """The dataset's files that are not there as the manifest says. Bytes are read where the mark does not say that this was
        done, and always if `thorough`; otherwise only sizes are compared."""
        if not self.holds(name):
            return manifest.files
        folder, mark = self.root / name, self.mark(name)
        trusted = mark is not None and mark.digest == manifest.digest and not thorough

        def right(entry: FileEntry) -> bool:
            path = folder / entry.name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                return False
            return trusted or sha256_of_file(path) == entry.sha256

        with ThreadPoolExecutor(THREADS) as threads:
            return [entry for entry, fine in zip(manifest.files, threads.map(right, manifest.files), strict=True) if not fine]

    def partial(self, name: str, entry: FileEntry) -> Path:
        """Where a file lies until it is known to be right."""
        return self.root / name / PARTIAL / entry.name

    def bytes_to_come(self, name: str, missing: Iterable[FileEntry]) -> int:
        """Of these files, less what has come of them."""
        partials = [(self.partial(name, entry), entry.bytes) for entry in missing]
        return sum(size - min(size, path.stat().st_size if path.exists() else 0) for path, size in partials)

    # --- changes -----------------------------------------------------------------------------------------------------------

    def make_room(self, size: int, keep: Collection[str], why: str) -> list[str]:
        """Make sure that `size` bytes can be written; returns the datasets that were removed for it: the oldest that this
        program copied and that are not of `keep`. Raises StagingError, having removed nothing, where that is not enough."""
        needed, free = int(size * ROOM), free_bytes(self.root)
        sizes = {name: size for name, size in self._own_datasets() if name not in keep}
        if needed > (room := free + sum(sizes.values())):
            raise StagingError(
                f"{self.root} has room for {naturalsize(room)}, but {why} need {naturalsize(needed)} more; free space there, "
                f"or name a larger disk in SMOL_LOCAL_DATA"
            )
        removed = []
        for name, size in sizes.items():
            if needed <= free:
                break
            free += size
            removed.append(name)
            (self.root / name / MANIFEST_NAME).unlink(missing_ok=True)  # not whole from the first moment on
            shutil.rmtree(self.root / name)
        return removed

    def _own_datasets(self) -> list[tuple[str, int]]:
        """Name and bytes of what this program made, the oldest first."""
        marks = sorted(self.root.rglob(MARK), key=lambda path: path.stat().st_mtime)
        names = [str(path.parent.relative_to(self.root)) for path in marks]
        return [
            (name, sum(path.stat().st_size for path in (self.root / name).rglob("*") if path.is_file()))
            for name in names
            if (mark := self.mark(name)) and mark.made
        ]

    def begin(self, name: str, manifest: Manifest, missing: Collection[FileEntry]) -> None:
        """Get the folder ready for files to come: no longer whole, nothing wrong in it."""
        folder, mark = self.root / name, self.mark(name)
        self._clear_way(folder)
        made = not folder.exists() or (mark is not None and mark.made)
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for entry in missing:
            (folder / entry.name).unlink(missing_ok=True)
        for path in {*(folder / PARTIAL).iterdir()} - {self.partial(name, entry) for entry in missing}:
            path.unlink()  # as an s5cmd leaves that was killed
        write_whole(folder / MARK, json.dumps(asdict(Mark(manifest.digest, made))) + "\n")

    def finish(self, name: str, manifest: Manifest) -> None:
        """All files of the dataset are there and right."""
        shutil.rmtree(self.root / name / PARTIAL)
        manifest.write(self.root / name)

    def link(self, name: str, target: Path) -> None:
        """Have the name stand for a folder elsewhere."""
        path = self.root / name
        if not path.is_symlink() or path.readlink() != target:
            self._clear_way(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)

    def _clear_way(self, path: Path) -> None:
        """Take away links on the way to this name, as an earlier configuration left them: nothing is written through one."""
        for part in (path, *path.parents):
            if part != self.root and part.is_relative_to(self.root) and part.is_symlink():
                part.unlink()
