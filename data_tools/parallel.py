"""Independent pieces of work over processes, with one progress bar: how verify, shuffle and decontaminate use many cores.

datatrove's executor serves pipelines of documents; this serves work on files, where a piece is a byte range or a shard. A
worker adds up its progress in a slot of a small file that the parent looks at, so nothing is sent while it works. A worker
that dies is noticed, and workers whose parent died or was interrupted stop at their next report of progress.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from smol_config import UserError
from smol_console import Progress

Advance = Callable[[int], None]
"""Reports work done, in the unit of the progress bar."""
Task = TypeVar("Task")
Result = TypeVar("Result")

_SLOT = 8  # bytes a task has in the file of counts
_LOOK_SECONDS = 0.5


def run_tasks(
    function: Callable[[Task, Advance], Result], tasks: Sequence[Task], workers: int, progress: Progress
) -> Iterator[Result]:
    """`function(task, advance)` for every task, on up to `workers` processes; the results in the order of the tasks.

    `function` is of a module's top level and its tasks and results can be pickled. With one worker it runs in this process.
    An exception of a task arrives here as it was raised, once the other workers have stopped. Raises UserError when a
    worker dies.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield function(task, progress.advance)
        return
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        counts.write_bytes(bytes(_SLOT * len(tasks)))
        # Spawned, not forked: the parent may hold threads and large libraries.
        pool = ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), _ignore_interrupt)
        try:
            slots = [_Slot(counts, number, os.getpid()) for number in range(len(tasks))]
            futures = [pool.submit(_run, function, task, slot) for task, slot in zip(tasks, slots, strict=True)]
            for future in futures:
                yield _result(future, futures, counts, progress)
        finally:
            counts.unlink()  # tells the workers to stop
            pool.shutdown(wait=True, cancel_futures=True)


def _result(future: "Future[Result]", futures: "list[Future[Result]]", counts: Path, progress: Progress) -> Result:
    """A task's result; while it is awaited, progress is shown and the failure of any other task is raised."""
    while not future.done():
        pending = [other for other in futures if not other.done()]
        done, _ = wait(pending, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
        _show(counts, progress)
        for other in done:
            _checked(other)
    _show(counts, progress)
    return _checked(future)


def _checked(future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, killed by the system or for want of memory; see the system's log, give --workers a smaller "
            "number, and run the command again"
        ) from error


def _show(counts: Path, progress: Progress) -> None:
    data = counts.read_bytes()
    done = sum(int.from_bytes(data[at : at + _SLOT], "little") for at in range(0, len(data), _SLOT))
    if done > progress.done:
        progress.advance(done - progress.done)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides


def _run(function: Callable[[Task, Advance], Result], task: Task, slot: "_Slot") -> Result:
    return function(task, slot.advance)


class _Stopped(Exception):
    """Raised in a worker whose result nobody waits for."""


@dataclass
class _Slot:
    """Where one task counts its progress."""

    counts: Path
    number: int
    parent: int
    done: int = field(default=0, init=False)

    def advance(self, count: int) -> None:
        """Add to the count; raises _Stopped when the parent is gone or has given up."""
        if os.getppid() != self.parent:
            os._exit(1)
        self.done += count
        try:
            with self.counts.open("r+b") as file:
                os.pwrite(file.fileno(), self.done.to_bytes(_SLOT, "little"), self.number * _SLOT)
        except FileNotFoundError:
            raise _Stopped from None
