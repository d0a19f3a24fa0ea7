"""What a process does that looks after a run from beside it for weeks, such as an exporter: one at a time, round after round.

    wait_for(RUN)  ->  sole_worker(LOCK)  ->  for each of rounds(RUN): do what is due

A worker keeps what it has done on disk, such as lines of a file, so that it may be killed and started again at any time.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from conversion import ConversionError
from conversion.background import Stopped
from conversion.service import Stop, pause, say
from smol_config import parse
from smol_train.callbacks.alerts import ALERTS_NAME, Alerts
from smol_train.sections.watch import AlertEvent, AlertsConfig

Tell = Callable[[AlertEvent, str], None]


def wait_for(run: Path, every: float, stop: Stop) -> bool:
    """Wait for a run's folder, looking `every` seconds; False when a stop was asked for before it was there."""
    if not run.exists():
        say(f"waiting for {run}")
    while not run.exists() and not stop():
        pause(every, stop)
    return run.exists()


def rounds(run: Path, every: float, once: bool, waiting: Callable[[], object], stop: Stop) -> Iterator[None]:
    """One for each look at the run: until it is done and nothing is `waiting()`, or a single one with `once`.

    Raises Stopped once `stop()` is true.
    """
    while True:
        over = is_over(run)  # before looking for checkpoints: the last one is whole when a run says so
        yield
        if once or (over and not waiting()):
            return
        pause(every, stop)
        if stop():
            raise Stopped


@contextlib.contextmanager
def telling(run: Path, config: AlertsConfig) -> Iterator[Tell]:
    """Where the run tells what happens: in its alerts.jsonl, and to the webhook. How the worker ends is none of its events."""
    alerts = Alerts(config, run, is_main=True)
    alerts.open()
    try:
        yield alerts.alert
    finally:
        alerts.close()


def alerts_to(webhook: str | None) -> AlertsConfig:
    """Of a worker that has no configuration of the run: its alerts, to that URL. Raises ConfigError for what is no URL."""
    return parse(AlertsConfig, {"webhook": webhook}, "the webhook")


def is_over(run: Path) -> bool:
    """Whether the latest that a run has told of its course is that it is done; started again, it would say so."""
    course = ("started", "resumed", "stopped", "crashed", "done")
    with contextlib.suppress(OSError, ValueError):
        events = [json.loads(line)["event"] for line in (run / ALERTS_NAME).read_text(encoding="utf8").splitlines()]
        return [event for event in events if event in course][-1:] == ["done"]
    return False


# --- what is done ----------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What append_line() has put there; empty when there is no file."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf8").splitlines():
            with contextlib.suppress(ValueError):  # half a line, of a process that was killed
                lines.append(json.loads(line))
    return lines


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append it, on the disk when this returns; raises ConversionError when it cannot be written."""
    try:
        with path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConversionError(f"{path} cannot be written ({error.strerror}); make room and start again") from error


# --- one at a time ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sole_worker(lock: Path, what: str, patience_seconds: float = 2.0) -> Iterator[None]:
    """Hold the file `lock`, with this host and process inside; raises ConversionError when another holds it.

    `what` says who works here, such as "an exporter". The lock is flock(2): the kernel frees it with the last process that
    holds it open. It is asked for again for `patience_seconds`: processes of one that was killed may be on their way out.
    """
    with _opened(lock, what) as file:
        deadline = time.monotonic() + patience_seconds
        while not _locked(file):
            if time.monotonic() > deadline:
                raise ConversionError(
                    f"{lock.parent} has {what} already, {_holder(file)}; stop that one, or leave the work to it"
                )
            time.sleep(0.1)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
        file.flush()
        yield


def _opened(lock: Path, what: str) -> TextIO:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a+", encoding="utf8")
    except OSError as error:
        raise ConversionError(f"{lock.parent} cannot be written to ({error.strerror}); {what} needs to") from error


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConversionError(
            f"{file.name} cannot be locked ({error.strerror}); mount the file system with locks (Lustre: -o flock)"
        ) from error
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        held = json.loads(file.read())
        return f"process {held['pid']} on {held['host']} since {held['started']}"
    except ValueError:  # it is just writing it
        return "which has just started"
