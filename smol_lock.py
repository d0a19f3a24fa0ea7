"""One run in one folder: the lock that pre-training and post-training hold while they write. The packages import this file.

flock(2) on RUN/lock: the kernel frees it with the last process that holds the open file, so kill -9 leaves nothing to clean
up. A forked writer of an asynchronous checkpoint holds it too: while it writes into the folder, the folder is in use.

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
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"


def take(run: Path, patience_seconds: float) -> tuple[TextIO | None, str | None]:
    """(the locked file, None), or (None, why not); (None, None) where the file system has no locks.

    A lock that is taken is asked for again for `patience_seconds`: the run before this one may be on its way out.
    """
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


def give_back(run: Path, file: TextIO) -> None:
    """Free the lock. A folder made for it goes again when nothing else was put into it."""
    with contextlib.suppress(OSError):
        if [path.name for path in run.iterdir()] == [LOCK_NAME]:
            (run / LOCK_NAME).unlink()
            run.rmdir()
    file.close()


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
