"""A function in a process of its own that gives way to everything else: lowest CPU priority, idle I/O, few threads.

    parent: call(function, ..)  --fork-->  child: imports torch, works  --pipe-->  its result, or its error, raised here

The parent loads neither torch nor Megatron-Core, so it can wait for weeks in a few megabytes; what a child's libraries hold
ends with it, and one that is killed for its memory takes nothing along. A child is killed when its parent ends, however that
ends; what the parent has open (a lock) is held until both are gone.
"""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from conversion import ConversionError
from conversion.service import LOOK_SECONDS, Stop
from smol_config import UserError
from smol_process import end_with

MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENFILE, errno.ETIMEDOUT, errno.ENETUNREACH}
"""What the system says of a disk or a network that has trouble now."""


class Stopped(Exception):
    """The work was given up, since the parent was asked to stop."""


class Died(ConversionError):
    """The child ended without a result."""


class MayPass(ConversionError):
    """Something that has nothing to do with the work itself, such as a full disk: the same may succeed later."""


def call(function: Callable[..., Any], *arguments: Any, threads: int, stop: Stop) -> Any:
    """`function(*arguments)` in a child; result and arguments must be such that pickle takes them.

    Raises the child's UserError, MayPass where trouble with a disk or a network is behind it, Died with the reason for any
    other error and for a child that was killed, Stopped once `stop()` is true.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_work, args=(theirs, os.getpid(), threads, function, arguments))
    child.start()
    theirs.close()
    try:
        while not ours.poll(LOOK_SECONDS):
            if stop():
                raise Stopped
        result, error = ours.recv()
    except EOFError:
        child.join()
        raise Died(_how_it_died(child.exitcode or 0)) from None
    finally:
        child.kill()  # nothing to be killed, unless this is left before there is a result
        child.join()
        ours.close()
    if error:
        raise error
    return result


def _how_it_died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as the system does when memory runs out"
    return f"its process ended with {code}" if code >= 0 else f"its process was ended by signal {-code}"


def _work(pipe: Connection, parent: int, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the child."""
    end_with(parent)
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to a whole group of processes: the parent decides
        signal.signal(number, signal.SIG_IGN)
    _give_way(threads)
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(*arguments), None
    except BaseException as error:  # told to the parent, which lives on
        outcome = None, _told(error)
    pipe.send(outcome)


def _give_way(threads: int) -> None:
    os.nice(19)
    with suppress(psutil.Error, AttributeError):  # not every kernel has I/O priorities
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with suppress(OSError):  # where memory runs out, this goes before any trainer
        Path("/proc/self/oom_score_adj").write_text("1000")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):  # read when a library is loaded
        os.environ[name] = str(threads)
    if torch := sys.modules.get("torch"):  # loaded before the fork
        torch.set_num_threads(threads)


def _may_pass(error: BaseException | None) -> bool:
    while error:
        trouble = isinstance(error, OSError) and error.errno in MAY_PASS
        if trouble or isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _told(error: BaseException) -> UserError:
    """What the parent raises."""
    if _may_pass(error):
        return MayPass(str(error))
    if isinstance(error, UserError):
        return error
    traceback.print_exception(error)
    sys.stderr.flush()
    return Died(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
