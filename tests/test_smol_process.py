"""A process ends with the one that started it, also when that one is killed."""

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from smol_process import end_with, when_parent_ends


def _grandchild(way: str, parent: int, started: Connection) -> None:
    if way == "fork":
        end_with(parent)
    else:
        when_parent_ends(lambda: os._exit(1))
    started.send(os.getpid())
    time.sleep(600)


def _child(way: str, started: Connection) -> None:
    multiprocessing.get_context(way).Process(target=_grandchild, args=(way, os.getpid(), started)).start()
    time.sleep(600)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_process_ends_when_its_parent_is_killed(way: str) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(way, theirs))
    child.start()
    theirs.close()
    grandchild = ours.recv()
    child.kill()
    child.join()
    try:
        with pytest.raises(EOFError):  # nobody holds the other end of the pipe any more
            assert ours.poll(60)
            ours.recv()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(grandchild, signal.SIGKILL)
