"""The folder on a node's own disk: what is there, what is missing, room for it, and the marks of what was done."""

import json
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from humanize import naturalsize

from slurm.staging.needs import StagingError
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, sha256_of_file
from smol_train.checkpoint_folder import free_bytes

MARK = "staged.json"
THREADS = 8
"""Files hashed or copied at a time."""
ROOM = 1.02
"""Times the bytes of the files: the file system's own blocks take a little."""


@dataclass(frozen=True)
class Mark:
    """What staged.json says of its folder."""

    digest: str
    """Of the manifest by which the files were verified."""
    whole: bool
    """All of them; False: files that have their names are right, others may be missing."""
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

    def is_whole(self, name: str, manifest: Manifest) -> bool:
        """Whether the marks say so; the files are not looked at."""
        mark = self.mark(name)
        return (
            mark is not None and mark.whole and mark.digest == manifest.digest and (self.root / name / MANIFEST_NAME).exists()
        )

    def bytes_to_come(self, name: str, missing: Iterable[FileEntry]) -> int:
        """Of these files, less what has come of them."""
        partials = [(self.partial(name, entry), entry.bytes) for entry in missing]
        return sum(size - min(size, path.stat().st_size if path.exists() else 0) for path, size in partials)

    def partial(self, name: str, entry: FileEntry) -> Path:
        return self.root / name / f"{entry.name}.partial"

    # --- changes -----------------------------------------------------------------------------------------------------------

    def make_room(self, size: int, keep: Collection[str], why: str) -> list[str]:
        """Make sure that `size` bytes can be written; returns the datasets that were removed for it: such as this program
        copied and nobody of `keep` is. Raises StagingError, having removed nothing, where that is not enough."""
        needed, free = int(size * ROOM), free_bytes(self.root)
        old = [mark.parent for mark in self.root.rglob(MARK) if self._removable(mark.parent, keep)]
        old.sort(key=lambda folder: (folder / MARK).stat().st_mtime)
        sizes = {folder: sum(path.stat().st_size for path in folder.iterdir()) for folder in old}
        if needed > (room := free + sum(sizes.values())):
            raise StagingError(
                f"{self.root} has room for {naturalsize(room)}, but {why} need {naturalsize(needed)} more; free space there, or "
                f"name a larger disk in SMOL_LOCAL_DATA"
            )
        removed = []
        for folder in old:
            if needed <= free:
                break
            free += sizes[folder]
            removed.append(str(folder.relative_to(self.root)))
            # Not whole from the first moment on, and known as this program's up to the last.
            for path in sorted(folder.iterdir(), key=lambda path: (path.name != MANIFEST_NAME, path.name == MARK)):
                path.unlink()
            folder.rmdir()
        return removed

    def _removable(self, folder: Path, keep: Collection[str]) -> bool:
        name = str(folder.relative_to(self.root))
        mark = self.mark(name)
        return mark is not None and mark.made and name not in keep

    def begin(self, name: str, manifest: Manifest, missing: Sequence[FileEntry]) -> None:
        """Get the folder ready for files to come: no longer whole, nothing wrong in it."""
        folder, mark = self.root / name, self.mark(name)
        self._clear_way(folder)
        made = not folder.exists() or (mark is not None and mark.made)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for entry in missing:
            (folder / entry.name).unlink(missing_ok=True)
        self._write_mark(folder, Mark(manifest.digest, whole=False, made=made))

    def finish(self, name: str, manifest: Manifest) -> None:
        """All files of the dataset are there and right."""
        folder, mark = self.root / name, self.mark(name)
        manifest.write(folder)
        self._write_mark(folder, Mark(manifest.digest, whole=True, made=mark is not None and mark.made))

    def link(self, name: str, target: Path) -> None:
        """Have the name stand for a folder elsewhere."""
        path = self.root / name
        if path.is_symlink() and path.readlink() == target:
            return
        self._clear_way(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def _clear_way(self, path: Path) -> None:
        """Take away a link of this name; nothing may be written through one."""
        for parent in path.parents[: len(path.relative_to(self.root).parts) - 1]:
            if parent.is_symlink():
                raise StagingError(f"{parent} is a link, but {path.name} is to be copied into it; remove the link")
        if path.is_symlink():
            path.unlink()

    def _write_mark(self, folder: Path, mark: Mark) -> None:
        partial = folder / f"{MARK}.partial"
        partial.write_text(json.dumps(asdict(mark)) + "\n", encoding="utf8")
        partial.rename(folder / MARK)
