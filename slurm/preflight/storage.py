"""Speed of the node's own disk and of the run's folder, and whether the checkpoints to come have room there.

Written and read past the page cache (O_DIRECT), or where a file system refuses that, with fsync and the cache dropped.
"""

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slurm.preflight.findings import Absent, Finding, Node
from slurm.starts import newest_step
from smol_console import short
from smol_train.checkpoint_folder import free_bytes, step_of, whole_checkpoints
from smol_train.config import RunConfig
from smol_train.plan import plan

BLOCK = 8 * 2**20
"""Bytes of one read or write."""
FILES_PER_RANK = 3
"""Of a checkpoint, at most: two of tensors, and its share of the others."""


def check_scratch(node: Node) -> Finding:
    if node.scratch is None:
        raise Absent("the node has no disk of its own (SMOL_LOCAL_DATA is empty)")
    limits = node.limits.storage
    return _check_speed(node, node.scratch, limits.scratch_write, limits.scratch_read)


def check_shared(node: Node) -> Finding:
    limits = node.limits.storage
    return _check_speed(node, node.run / "slurm" / "preflight", limits.shared_write, limits.shared_read)


def _check_speed(node: Node, folder: Path, least_write: float | None, least_read: float | None) -> Finding:
    limits = node.limits.storage
    try:
        write, read = measure(folder, node.name, limits.megabytes * 10**6, limits.streams)
    except OSError as error:
        return Finding("bad", error.strerror or "?", "", f"{folder} cannot be written and read ({error.strerror}); mend it")
    value, want = f"write {write:.3g}, read {read:.3g} GB/s", f">= {least_write or 0:g}, {least_read or 0:g}"
    if write >= (least_write or 0) and read >= (least_read or 0):
        return Finding("ok", value, want if least_write or least_read else "")
    return Finding("bad", value, want, f"{folder} is slow ({value}); look at its mount and at what else uses it")


def measure(folder: Path, name: str, size: int, streams: int) -> tuple[float, float]:
    """(written, read) GB/s of `streams` files of together `size` bytes, which are removed again. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f".speed-{name}-{number}" for number in range(streams)]
    blocks = max(1, size // streams // BLOCK)
    try:
        with ThreadPoolExecutor(streams) as threads:
            rates = []
            for work in (_write, _read):
                started = time.perf_counter()
                list(threads.map(work, paths, [blocks] * streams))
                rates.append(blocks * streams * BLOCK / (time.perf_counter() - started) / 1e9)
        return rates[0], rates[1]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _write(path: Path, blocks: int) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor, mmap.mmap(-1, BLOCK) as block:
        block[:] = os.urandom(BLOCK)  # what some file systems would compress away is no test
        for _ in range(blocks):
            os.write(descriptor, block)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path, blocks: int) -> None:
    with _opened(path, os.O_RDONLY) as descriptor, mmap.mmap(-1, BLOCK) as block:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(blocks):
            if os.readv(descriptor, [block]) != BLOCK:
                raise OSError(errno.EIO, "fewer bytes read than written")


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor past the page cache, where the file system allows it. An anonymous map is aligned as that needs."""
    try:
        descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# --- room ------------------------------------------------------------------------------------------------------------------


def checkpoints_to_come(config: RunConfig, run: Path) -> int:
    """How many more than now lie there at the most: the last ones, the one being written, and milestones still ahead."""
    every, newest = config.checkpoint.keep_every_steps, newest_step(run)
    milestones = config.train_steps // every - max(newest, 0) // every if every else 0
    kept = [path for path in whole_checkpoints(run) if not every or step_of(path) % every]
    return milestones + max(1, config.checkpoint.keep_last + 1 - len(kept))


def check_space(node: Node) -> Finding:
    size, count = plan(node.config).checkpoint.disk_bytes, checkpoints_to_come(node.config, node.run)
    free, needed = free_bytes(node.run), size * count
    value, want = f"{free / 1e9:.4g} GB free", f">= {needed / 1e9:.4g} GB"
    if free >= needed:
        return Finding("ok", value, want)
    sentence = (
        f"{node.run} has {free / 1e9:.4g} GB free, and {count} more checkpoints of {size / 1e9:.4g} GB are to come; free some, "
        f"lower checkpoint.keep_last={node.config.checkpoint.keep_last}, or raise checkpoint.keep_every_steps="
        f"{node.config.checkpoint.keep_every_steps}"
    )
    return Finding("stop", value, want, sentence)


def check_inodes(node: Node) -> Finding:
    needed = FILES_PER_RANK * node.ranks * checkpoints_to_come(node.config, node.run)
    there = next(path for path in (node.run, *node.run.absolute().parents) if path.exists())
    status = os.statvfs(there)
    if not status.f_files:
        raise Absent("the file system does not count its files")
    value, want = f"{short(status.f_favail)} free", f">= {short(needed)}"
    if status.f_favail >= needed:
        return Finding("ok", value, want)
    return Finding("stop", value, want, f"{there} has room for {status.f_favail} more files, {needed} are needed; remove some")
