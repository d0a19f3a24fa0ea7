"""Work over processes: results in order, progress added up, faults and deaths of workers told, nothing left running."""

import os
import signal
import time
from pathlib import Path

import pytest
from document_files import python

from data_tools.parallel import Advance, run_tasks
from smol_config import UserError
from smol_console import Progress


def square(number: int, advance: Advance) -> int:
    for _ in range(number):
        advance(1)
    return number**2


def die(number: int, advance: Advance) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(folder: Path, advance: Advance) -> None:
    """One task fails; the other works on until it is told to stop."""
    if folder.name == "failing":
        raise UserError("the disk is full")
    while True:
        advance(1)
        (folder / "alive").write_text(str(time.time()))
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_in_the_order_of_the_tasks_and_progress_adds_up(workers: int) -> None:
    with Progress("working", "steps") as progress:
        assert list(run_tasks(square, [5, 3, 0, 4], workers, progress)) == [25, 9, 0, 16]
    assert progress.done == 12


def test_one_worker_runs_in_this_process() -> None:
    process = list(run_tasks(lambda _, advance: os.getpid(), [1, 2], 1, Progress("working", "steps")))
    assert process == [os.getpid()] * 2


def test_a_worker_that_dies_is_told_in_one_sentence() -> None:
    with pytest.raises(
        UserError, match="a worker process died, killed by the system or for want of memory; see the system's log"
    ):
        list(run_tasks(die, [0, 1, 2], 2, Progress("working", "steps")))


def test_a_fault_comes_as_it_was_raised_and_stops_the_others(tmp_path: Path) -> None:
    folders = [tmp_path / "working", tmp_path / "failing"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(UserError, match="the disk is full"):
        list(run_tasks(fail, folders, 2, Progress("working", "steps")))
    assert not alive(tmp_path / "working")


ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/data_tools")
from test_parallel import endless
endless(Path(sys.argv[1]))
"""


def endless(folder: Path) -> None:
    """Work without end on two workers, and be killed in the midst of it."""
    tasks = [folder / name for name in ("a", "b")]
    for task in tasks:
        task.mkdir()
    steps = run_tasks(fail, tasks, 2, KillsItself("working", "steps"))
    list(steps)


class KillsItself(Progress):
    def advance(self, count: int = 1) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    assert python("-c", ENDLESS, tmp_path).code == -signal.SIGKILL
    deadline = time.time() + 20
    while any(alive(tmp_path / name) for name in ("a", "b")):
        assert time.time() < deadline, "a worker went on"
    assert (tmp_path / "a" / "alive").exists() or (tmp_path / "b" / "alive").exists()


def alive(folder: Path) -> bool:
    """Whether somebody goes on writing there."""
    path = folder / "alive"
    before = path.read_text() if path.exists() else ""
    time.sleep(0.2)
    return path.exists() and path.read_text() != before
