"""Writes one checkpoint in forked processes and makes it whole. What fails on one rank is told to all, and ends no run.

    make_partial    RUN/iter_N.partial, in which Megatron-Core's plan (checkpoint.py) puts each rank's files
    Save            copies to the host, forks
    forked writers  one for each file: write, fsync, SHA-256. They see memory as it was at the fork: later steps tear nothing
    Save.finish     what was written is gathered; the main rank adds the small files and the marker, and renames the folder

Megatron-Core's plan and file format, not its save(). There one rank writes small files between collectives: when that fails
(a full disk), the others wait for ever. Its background process waits for ever for a writer that was killed (seen), and results
travel through a manager process: a SIGTERM to the whole job ends it, and then one rank raises while the others wait (seen).
Here a writer's end closes its pipe, however it came about.
"""

import gc
import multiprocessing
import os
import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync, _split_by_size_and_type
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from smol_process import end_with
from smol_train.checkpoint_folder import (
    MARKER,
    STATE,
    CheckpointError,
    StoredFile,
    aside,
    listing_text,
    remove_quietly,
    set_aside,
)
from smol_train.checkpoint_integrity import describe

Result = TypeVar("Result")
Bucket = tuple[str, str, Any]
"""Megatron-Core's: (path, name, (objects, tensors))."""


class SaveError(CheckpointError):
    """A save that failed, on all ranks. What was begun is removed; training can go on and another save be tried."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole."""

    folder: Path
    bytes: int
    write_seconds: float
    """Writing and hashing on the slowest rank; in the background where the save is."""


@dataclass(frozen=True)
class _Written:
    """What one writer, or all of a rank, made; `error` says why not."""

    results: list[WriteResult] = field(default_factory=list)
    files: dict[str, StoredFile] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


Read = Callable[[str], torch.Tensor]
"""The tensor of a key, on the host."""


class SharePlan(FileSystemWriterAsync):
    """Megatron-Core's writer of one rank's share, up to the files' contents; the forked writers take it from there.

    With `read`, the tensors that were planned are on the meta device, and each one's content is read when it is written.
    """

    write_buckets: list[Bucket]

    def __init__(self, folder: Path, thread_count: int, read: Read | None = None) -> None:
        super().__init__(str(folder), thread_count=thread_count)
        self.read = read

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Fill `write_buckets`, as the original does, without starting its manager process."""
        self.write_buckets = []
        for items in _split_by_size_and_type(self.thread_count, plan.items):
            contents: list[tuple[Any, Any]] = [(item, planner.resolve_data(item)) for item in items]
            objects = [(item, data) for item, data in contents if item.type == WriteItemType.BYTE_IO]
            tensors = [(item, data) for item, data in contents if item.type != WriteItemType.BYTE_IO]
            if contents:
                name = f"{plan.storage_data.prefix}{len(self.write_buckets)}.distcp"
                self.write_buckets.append((str(Path(self.checkpoint_dir) / name), name, (objects, self._contents(tensors))))

    def _contents(self, tensors: list[tuple[Any, torch.Tensor]]) -> Any:
        """(item, tensor) of a file, to be gone through once."""
        if self.read:
            return _Streamed([item for item, _ in tensors], self.read)
        return [(item, _standalone(tensor)) for item, tensor in tensors]

    def buckets_on_host(self) -> list[Bucket]:
        """The buckets with their tensors copied from the GPU."""
        buckets: list[Bucket] = self.write_buckets if self.read else FileSystemWriterAsync.preload_tensors(self.write_buckets)
        return buckets


class _Streamed:
    """(item, tensor) of a file, each tensor read when its turn comes."""

    def __init__(self, items: list[Any], read: Read) -> None:
        self.items, self.read = items, read

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        for item in self.items:
            yield item, _standalone(self.read(item.index.fqn))


def _standalone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy where it is a part of a larger one on the host: torch.save would write the larger one."""
    tensor = tensor.detach()
    is_part = tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_part else tensor


class Save:
    """One save on its way, its files being written: until `finish` was called on all ranks."""

    def __init__(
        self, folder: Path, plan: SharePlan, metadata: Metadata | None, small_files: dict[str, bytes], step: int
    ) -> None:
        """`folder`: the checkpoint's name once it is whole; `metadata`: of the whole plan, on the main rank; `small_files`:
        what the main rank adds to the tensors, by name."""
        self.folder, self.plan, self.metadata, self.small_files, self.step = folder, plan, metadata, small_files, step
        self.partial = aside(folder, "partial")
        self.writers = [_ForkedWriter(plan.transforms, bucket) for bucket in plan.buckets_on_host()]

    def is_written(self) -> bool:
        """Whether the writers of all ranks have ended, well or not; called on all ranks."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        writing = torch.tensor([any(not writer.has_ended() for writer in self.writers)], dtype=torch.int, device=device)
        torch.distributed.all_reduce(writing)
        return not bool(writing)

    def finish(self) -> Saved:
        """Wait for the writers and make the checkpoint whole; called on all ranks. Raises SaveError on all of them."""
        share = _joined([writer.wait() for writer in self.writers])
        is_main, size = torch.distributed.get_rank() == 0, torch.distributed.get_world_size()
        shares: list[Any] = [None] * size
        torch.distributed.gather_object(share, shares if is_main else None)
        return _told_by_main(lambda: self._complete(shares), f"checkpoint {self.folder} is not saved", self.partial)

    def abandon(self) -> None:
        """End the writers of this rank, without the others: the process is on its way out."""
        for writer in self.writers:
            writer.process.kill()

    def _complete(self, shares: list[_Written]) -> Saved:
        """On the main rank: the small files, the marker, the name."""
        for rank, share in enumerate(shares):
            if share.error:
                raise SaveError(f"rank {rank}: {share.error}")
        self.plan.finish(self.metadata, [share.results for share in shares])
        save_config(CheckpointingConfig("torch_dist", 1), str(self.partial))
        for name, content in self.small_files.items():
            (self.partial / name).write_bytes(content)
        files = {name: file for share in shares for name, file in share.files.items()}
        for path in self.partial.iterdir():
            if path.name not in files:
                _to_disk(path)
                files[path.name] = describe(path)
        bytes_written = sum(file.bytes for file in files.values())
        del files[STATE]  # may be rewritten
        (self.partial / MARKER).write_text(listing_text(self.step, files), encoding="utf8")
        for path in (self.partial / MARKER, self.partial):
            _to_disk(path)
        replaced = set_aside(self.folder, "replaced") if self.folder.exists() else None
        self.partial.rename(self.folder)
        _to_disk(self.folder.parent)
        if replaced:
            shutil.rmtree(replaced)
        return Saved(self.folder, bytes_written, max(share.seconds for share in shares))


def make_partial(folder: Path) -> Path:
    """An empty folder to write the checkpoint `folder` into; called on all ranks, raises SaveError on all of them."""
    partial = aside(folder, "partial")
    _told_by_main(lambda: _make_empty(partial), f"checkpoint {folder} is not saved", partial)
    return partial


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a save that failed where nothing could be removed
    folder.mkdir(parents=True)


def _told_by_main(action: Callable[[], Result], otherwise: str, on_failure_remove: Path) -> Result:
    """Run `action` on the main rank: its result on all ranks, or SaveError on all."""
    told: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            told[0] = action()
        except Exception as error:  # whatever it is, the others wait for the word
            told[1] = str(error) or type(error).__name__
            remove_quietly(on_failure_remove)
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise SaveError(f"{otherwise}: {told[1]}")
    result: Result = told[0]
    return result


def _to_disk(path: Path) -> None:
    """fsync of a file or a folder: a power cut must not leave a marker without the files it lists."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the writers -----------------------------------------------------------------------------------------------------------


class _ForkedWriter:
    """A process that writes one file of this rank."""

    def __init__(self, transforms: Any, bucket: Bucket) -> None:
        context = multiprocessing.get_context("fork")
        self.name = bucket[1]
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_write, args=(sender, transforms, bucket, os.getpid()))
        self.outcome: _Written | None = None
        try:
            self.process.start()
        except OSError as error:  # no memory for a fork
            self.outcome = _Written(error=f"{self.name}: no process for it could be started: {error}")
        sender.close()

    def has_ended(self) -> bool:
        return self.outcome is not None or self.receiver.poll()

    def wait(self) -> _Written:
        if self.outcome is None:
            try:
                self.outcome = self.receiver.recv()
            except (EOFError, OSError):
                self.process.join()
                self.outcome = _Written(error=f"{self.name}: its writer ended with exit code {self.process.exitcode}")
            self.process.join()
        return self.outcome


def _write(sender: Any, transforms: Any, bucket: Bucket, parent: int) -> None:
    """In the forked process: write, hash, tell."""
    gc.disable()  # freeing the parent's tensors would touch its GPU
    torch.set_num_threads(1)  # the parent's threads are not here; waiting for them would be for ever
    end_with(parent)  # an orphan would hold the run's lock while it writes for nobody
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # they stop the run, which waits for this file
        signal.signal(number, signal.SIG_IGN)
    started = time.monotonic()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    counter: queue.Queue[int] = queue.Queue()
    counter.put(0)
    path, name, _ = bucket
    try:
        FileSystemWriterAsync.write_preloaded_data([transforms], 0, bucket, results, counter, use_fsync=True)
        _, outcome = results.get()
        if isinstance(outcome, Exception):
            raise outcome
        files = {name: describe(Path(path))}
        sender.send(_Written(outcome, files, time.monotonic() - started))
    except Exception as error:  # told to the main rank, which decides
        sender.send(_Written(error=f"{name}: {_root(error)}"))


def _root(error: BaseException) -> BaseException:
    """What the system said, where torch.save put words of its own over it."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, OSError):
        at = at.__cause__ or at.__context__
    return at or error


def _joined(written: list[_Written]) -> _Written:
    """What all writers of a rank made."""
    whole = _Written()
    for one in written:
        whole = replace(
            whole,
            results=whole.results + one.results,
            files=whole.files | one.files,
            seconds=max(whole.seconds, one.seconds),
            error=whole.error or one.error,
        )
    return whole
