"""Ends a run that makes no progress: the stacks of all ranks to RUN/hangs, an alert, exit 85 (start me again).

    main thread   on_step_start, on_step_end, ...  -> "this phase began now", which costs microseconds
    own thread    looks every few seconds: writes RUN/heartbeat/rank_N.json where something moved; where the phase outlasted
                  its allowance, or another rank found that, leaves RUN/hangs/NUMBER/rank_N.txt and ends the process
    C timer       (faulthandler) the last resort where Python itself is stuck, in a call that keeps the interpreter's lock or
                  on a file system that does not answer: stacks to stderr, exit 1, 90 seconds after the thread should have acted

A hung collective leaves every rank waiting, so all see it at about the same time; the first one's folder in RUN/hangs tells
the rest not to wait, and each stays until all have written or half a minute passed. Times are monotonic: a clock that is set
harms nothing. Collectives get a longer time limit than the watchdog's (smol_train/parallel.py), or they would act first.
"""

import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from smol_files import write_whole
from smol_train.callbacks.alerts import Alerts
from smol_train.callbacks.base import Callback, Metrics
from smol_train.exit_codes import REQUEUE
from smol_train.launch import host_name
from smol_train.parallel import TIMEOUT, Ranks
from smol_train.sections.watch import PhaseName, WatchdogConfig

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

WAIT_FOR_OTHERS_SECONDS = 30.0
LAST_RESORT_SECONDS = 90.0
"""How long after the limit the C timer acts, by when the thread has waited for the others and delivered the alert."""

STDERR = 2
"""By number: where the timer acts, Python's own stream may be what is stuck."""


def collective_timeout(config: WatchdogConfig) -> timedelta:
    """Time limit of collectives, under which the watchdog is the one to end a hung run."""
    return timedelta(minutes=config.longest_minutes + 10) if config.minutes else TIMEOUT


@dataclass(frozen=True)
class Phase:
    """What this rank has been doing since when."""

    name: PhaseName
    step: int
    since: float
    """On the monotonic clock."""
    time: str
    """The same in UTC, for those who read the heartbeat."""


class Watchdog(Callback):
    """A context manager, around all that may hang; as a callback, first in the list, so that it sees where others begin."""

    def __init__(self, config: WatchdogConfig, run: Path, ranks: Ranks, alerts: Alerts) -> None:
        self.run, self.ranks, self.alerts, self.minutes_of = run, ranks, alerts, config.minutes_of
        self.on = config.minutes > 0
        shortest = min(config.minutes, config.first_step_minutes, config.pause_minutes)
        self.look_seconds = min(10.0, 6.0 * shortest) if self.on else 10.0
        self.stepped = False
        self.phase = self.written = self._now("start-up", 0)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look_for_ever, name="watchdog", daemon=True)

    # --- what the main thread tells -------------------------------------------------------------------------------------------

    def __enter__(self) -> "Watchdog":
        if self.on:
            self.folder = self._next_folder()
            self._begin("start-up", 0)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.on:
            faulthandler.cancel_dump_traceback_later()
            self.ended.set()
            self.thread.join(LAST_RESORT_SECONDS)
            if self.phase.name != "start-up":
                self.phase = self._now("ended", self.phase.step)
                self._write_heartbeat()

    def on_fit_start(self, trainer: "Trainer") -> None:
        self._begin("start-up", trainer.state.step)

    def on_step_start(self, trainer: "Trainer") -> None:
        self._begin("step" if self.stepped else "first step", trainer.state.step)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        self.stepped = True
        self._begin("between steps", trainer.state.step)

    def on_fit_end(self, trainer: "Trainer") -> None:
        self._begin("after the last step", trainer.state.step)

    def _begin(self, name: PhaseName, step: int) -> None:
        if self.on:
            self.phase = self._now(name, step)
            faulthandler.dump_traceback_later(60 * self.minutes_of(name) + LAST_RESORT_SECONDS, exit=True, file=STDERR)

    @staticmethod
    def _now(name: PhaseName, step: int) -> "Phase":
        return Phase(name, step, time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds"))

    def _next_folder(self) -> Path:
        """Where the stacks of this attempt would go: one name on all ranks, and none that an earlier attempt used."""
        number = [len(list((self.run / "hangs").glob("*"))) + 1]
        if self.ranks.world_size > 1:
            torch.distributed.broadcast_object_list(number, src=0, device=self.ranks.device)
        return self.run / "hangs" / f"{number[0]:03d}"

    # --- what the watching thread does ----------------------------------------------------------------------------------------

    def _look_for_ever(self) -> None:
        while not self.ended.wait(self.look_seconds):
            phase = self.phase
            if time.monotonic() - phase.since > 60 * self.minutes_of(phase.name) or self._another_rank_gave_up():
                self._give_up(phase)
            if phase.name != "start-up":  # a run that is refused at its start leaves nothing behind
                self._write_heartbeat()

    def _another_rank_gave_up(self) -> bool:
        try:
            return self.folder.exists()
        except OSError:
            return False

    def _write_heartbeat(self) -> None:
        phase = self.phase
        if phase == self.written:
            return
        path = self.run / "heartbeat" / f"rank_{self.ranks.rank}.json"
        place = {"rank": self.ranks.rank, "host": host_name(), "pid": os.getpid()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({**place, "step": phase.step, "phase": phase.name, "time": phase.time}) + "\n")
        except OSError as error:
            logger.warning("heartbeat %s cannot be written (%s)", path, error.strerror)
        self.written = phase

    def _give_up(self, phase: Phase) -> None:
        """Never returns."""
        seconds = time.monotonic() - phase.since
        rank = self.ranks.rank
        what = f"rank {rank} made no progress for {seconds:.0f} seconds in phase '{phase.name}' after step {phase.step}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank_{rank}.partial").open("w", encoding="utf8") as file:
                file.write(f"{what}; host {host_name()}, process {os.getpid()}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            (self.folder / f"rank_{rank}.partial").rename(self.folder / f"rank_{rank}.txt")
        except OSError as error:
            logger.warning("stacks cannot be written to %s (%s)", self.folder, error.strerror)
        logger.error("%s; stacks are in %s; exiting with %d", what, self.folder, REQUEUE)
        self.alerts.alert("stalled", f"{what}; stacks of all ranks are in {self.folder}; exit code {REQUEUE}")
        self._wait_for_others()
        self.alerts.drain()
        for child in multiprocessing.active_children():  # a checkpoint's writer would keep the run's lock
            child.kill()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(REQUEUE)

    def _wait_for_others(self) -> None:
        """Until all ranks have written their stacks: the first to leave may have the launcher end the rest."""
        deadline = time.monotonic() + WAIT_FOR_OTHERS_SECONDS
        while len(list(self.folder.glob("rank_*.txt"))) < self.ranks.world_size and time.monotonic() < deadline:
            time.sleep(0.1)
