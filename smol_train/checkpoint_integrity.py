"""Whether a whole checkpoint still holds what was saved, and the newest one that does.

The marker lists size and SHA-256 of every file. In a started process group the ranks share the files, look at them at the
same time and agree on the outcome, so all must call; alone, one process looks at all files, several at a time.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from smol_train.checkpoint_folder import (
    MARKER,
    CheckpointError,
    StoredFile,
    check_whole,
    read_listing,
    read_state,
    step_of,
    whole_checkpoints,
)
from smol_train.sections.run import Verify

logger = logging.getLogger(__name__)

Damaged = Callable[[Path, str], None]
"""Is told of a damaged checkpoint that is passed over: its folder, and what is wrong with it."""


def _warn(folder: Path, fault: str) -> None:
    logger.warning("checkpoint %s is damaged (%s): passed over", folder, fault)


def newest_good(run: Path, verify: Verify = "hashes", before: int | None = None, damaged: Damaged = _warn) -> Path | None:
    """The newest whole and undamaged checkpoint of a run's folder, of a step below `before` where that is given.

    Called on all ranks of a started group, which get the same answer. `damaged` is told of each one that is passed over.
    None: there is no whole one. Raises CheckpointError when there are some and all are damaged.
    """
    candidates = [path for path in whole_checkpoints(run) if before is None or step_of(path) < before]
    candidates = [run / name for name in _told_by_main([path.name for path in candidates])]
    for folder in reversed(candidates):
        if fault := find_fault(folder, verify):
            damaged(folder, fault)
        else:
            return folder
    if candidates:
        raise CheckpointError(
            f"all whole checkpoints of {run} are damaged ({', '.join(path.name for path in candidates)}); move them out of "
            f"the folder to start over, or bring back a copy"
        )
    return None


def find(path: str | Path, verify: Verify = "hashes") -> Path:
    """The checkpoint that a CHECKPOINT argument means: itself, or the newest good one of a run's folder.

    Raises CheckpointError when there is none, or when the one that was named is not whole or damaged.
    """
    path = Path(path)
    if (path / MARKER).exists() or (path / "metadata.json").exists() or path.name.startswith("iter_"):
        check_whole(path)
        if fault := find_fault(path, verify):
            raise CheckpointError(f"checkpoint {path} is damaged ({fault}); use another one")
        return path
    if found := newest_good(path, verify):
        return found
    raise CheckpointError(f"no whole checkpoint in {path}; give an iter_* folder or a run's folder that holds one")


def find_fault(folder: Path, verify: Verify) -> str | None:
    """What is wrong with a whole checkpoint, None if nothing is; the same on all ranks, all of which must call."""
    rank, size = _place()
    mine = _fault_in_share(folder, verify, rank, size)
    return next((fault for fault in _told_by_all(mine) if fault), None)


def _fault_in_share(folder: Path, verify: Verify, rank: int, size: int) -> str | None:
    try:
        if rank == 0:
            read_state(folder)  # not listed, as it may be rewritten
        listing = read_listing(folder)
    except (OSError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if listing is None:
        if rank == 0:
            logger.info("checkpoint %s was saved before sizes and hashes were listed: used unchecked", folder)
        return None
    largest_first = sorted(listing, key=lambda name: (-listing[name].bytes, name))
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // size)) as threads:
        faults = threads.map(lambda name: _file_fault(folder / name, listing[name], verify), largest_first[rank::size])
        return next((fault for fault in faults if fault), None)


def _file_fault(path: Path, stored: StoredFile, verify: Verify) -> str | None:
    try:
        found = path.stat().st_size
        if found != stored.bytes:
            return f"{path.name} has {found:,} bytes instead of {stored.bytes:,}"
        if verify == "hashes" and sha256(path) != stored.sha256:
            return f"{path.name} has another SHA-256 than when it was saved"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def describe(path: Path) -> StoredFile:
    """Size and SHA-256 of a file, read from its beginning."""
    return StoredFile(path.stat().st_size, sha256(path))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- agreement -------------------------------------------------------------------------------------------------------------


def _place() -> tuple[int, int]:
    """(rank, ranks); a process without a group is alone."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _told_by_main(names: list[str]) -> list[str]:
    """The main rank's list on all ranks: what a shared file system shows may lag on some."""
    if _place()[1] == 1:
        return names
    told: list[str] = [json.dumps(names)]
    torch.distributed.broadcast_object_list(told, src=0)
    return list(json.loads(told[0]))


def _told_by_all(fault: str | None) -> list[str | None]:
    size = _place()[1]
    told: list[str | None] = [fault] * size
    if size > 1:
        torch.distributed.all_gather_object(told, fault)
    return told
