"""One run in one folder: a lock that a second run pointed at the same `train.output_dir` meets before it touches anything.

Held from before the newest checkpoint is looked for until the process groups come down. flock(2) on RUN/lock by the main
rank: the kernel frees it with the last process that holds the open file, so kill -9 leaves nothing to clean up. A writer of
an asynchronous checkpoint, which is forked, holds it too: while it writes into the folder, the folder is in use.

Across hosts: Linux carries flock over NFS as a lock on the server (NFSv4: freed by the server when the host's lease ends,
about 90 seconds after it died; NFSv3: when the host is up again). Lustre wants the mount option `flock`; with `localflock`,
or where a file system refuses locks, only runs on one host see each other, and the second case is said in the log.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import torch

from smol_config import UserError
from smol_train.parallel import Ranks

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"


class RunLockError(UserError):
    """Another run works in this folder."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks, patience_seconds: float = 10.0) -> Iterator[None]:
    """Hold RUN/lock, with this host and process inside; called on all ranks, raises RunLockError on all of them.

    A lock that is taken is asked for again for `patience_seconds`: the run before this one may be on its way out.
    A folder made for the lock goes again when nothing else was put into it.
    """
    file, refusal = _acquire(run, patience_seconds) if ranks.is_main else (None, None)
    try:
        told = [refusal]
        if ranks.world_size > 1:
            torch.distributed.broadcast_object_list(told, src=0, device=ranks.device)
        if told[0]:
            raise RunLockError(told[0])
        yield
    finally:
        if file:
            _release(run, file)


def _acquire(run: Path, patience_seconds: float) -> tuple[TextIO | None, str | None]:
    """(the locked file, None), or (None, why not); (None, None) where the file system has no locks."""
    deadline = time.monotonic() + patience_seconds
    while True:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK_NAME).open("a+", encoding="utf8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            if time.monotonic() > deadline:
                return None, f"train.output_dir={run} is in use by {holder}; stop that run or give another train.output_dir"
            time.sleep(0.2)
            continue
        except OSError as error:
            logger.warning("%s cannot be locked (%s): nothing keeps a second run out of this folder", run, error.strerror)
            file.close()
            return None, None
        if not _is_still_there(run / LOCK_NAME, file):  # removed between our open and our lock: another file has the name
            file.close()
            continue
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
        file.flush()
        return file, None


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        held = json.loads(file.read())
        return f"process {held['pid']} on {held['host']} since {held['started']}"
    except ValueError:  # its holder is just writing it
        return "another run"


def _is_still_there(path: Path, file: TextIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _release(run: Path, file: TextIO) -> None:
    with contextlib.suppress(OSError):
        if [path.name for path in run.iterdir()] == [LOCK_NAME]:
            (run / LOCK_NAME).unlink()
            run.rmdir()
    file.close()
