"""A folder back from where upload_folder() put it: what is there already and right stays, the rest is fetched and compared."""

import itertools
import sys
from pathlib import Path
from time import sleep

from conversion import ConversionError, Unreachable
from conversion.upload.flow import DELAYS
from conversion.upload.local_files import LocalFile, hash_all, local_files
from conversion.upload.objects import MANIFEST, ObjectStore, open_objects, open_store
from conversion.upload.store import Remote


def whole_folders(target: str) -> list[str]:
    """Names of the folders directly below a URL that arrived there whole. Raises as download_folder()."""
    names = (name.split("/") for name in open_objects(target).sizes())
    return sorted(parts[0] for parts in names if parts[1:] == [MANIFEST])


def download_folder(target: str, folder: Path) -> int:
    """Make `folder` hold exactly what the manifest at `target` lists, SHA-256 for SHA-256; returns how many bytes that is.

    Called again after a kill it goes on where it stopped. Until it returns, the folder is not to be used. Raises
    ConversionError for a target that holds no whole folder, Unreachable when it did not answer in several attempts.
    """
    store = open_store(target)
    for delay in itertools.chain(DELAYS, [None]):
        try:
            return _download(store, folder)
        except Unreachable as error:
            if delay is None:
                raise
            print(f"{error}; next attempt in {delay:.0f} s", file=sys.stderr, flush=True)
            sleep(delay)
    raise AssertionError("unreachable")


def _download(store: ObjectStore, folder: Path) -> int:
    manifest = store.manifest()
    if manifest is None:
        raise ConversionError(f"{store.url} holds no folder that arrived whole; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _lacking(manifest, folder)
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    store.fetch(wanted, folder)
    if wrong := _lacking(manifest, folder):
        raise Unreachable(f"{store.url}: {', '.join(wrong)} did not arrive as sent (size or SHA-256)")
    return sum(entry.size for entry in manifest.values())


def _lacking(manifest: dict[str, Remote], folder: Path) -> dict[str, Remote]:
    """What the folder has not, or not right; files that do not belong there are removed."""
    there: dict[str, LocalFile] = {}
    for file in local_files(folder) if any(folder.iterdir()) else []:
        if file.name in manifest:
            there[file.name] = file
        else:
            file.path.unlink()
    hash_all(list(there.values()))
    return {
        name: entry
        for name, entry in manifest.items()
        if name not in there or (there[name].size, there[name].sha256) != (entry.size, entry.sha256)
    }
