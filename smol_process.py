"""How a process ends with the one that started it, however that one ends. The packages import this file; it imports none."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel kill this process when `parent` ends, the process that forked it, or the thread of it that did.

    `by` another signal for one that has processes of its own to end.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def when_parent_ends(end: Callable[[], None]) -> None:
    """Call `end`, in a thread, once the process that started this one by multiprocessing has ended.

    For one that was not forked from it: a fork server lives on.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True).start()
