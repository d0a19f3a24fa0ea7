"""Result folders that appear whole or not at all. Every command of data_tools writes its folder through this file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smol_config import UserError


def check_new_folder(folder: Path) -> Path:
    """The resolved path of a result folder; raises UserError unless it is missing or an empty folder."""
    folder = folder.resolve()
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; name a new folder, or remove this one first")
        if folder.is_mount():
            raise UserError(f"{folder} is a mount point, which cannot be replaced as a whole; name a folder inside it")
    elif folder.exists():
        raise UserError(f"{folder} is a file; name a new folder")
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a working folder beside `folder` that takes its name at the end of the block; on any fault it is removed.

    The working folder is a sibling because a rename is atomic only within one file system. Raises UserError when `folder`
    is in use or when the disk refuses a write.
    """
    folder = check_new_folder(folder)
    missing_parents = [parent for parent in folder.parents if not parent.exists()]
    working = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        working.mkdir(parents=True)
        yield working
        working.rename(folder)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        for parent in missing_parents:  # nearest first; one that another process has begun to use is left alone
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise UserError(f"{folder} cannot be written: {reason}; check its place, rights and free space") from error
        raise
