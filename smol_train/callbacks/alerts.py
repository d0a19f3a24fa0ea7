"""What a run has to tell: every event a line of RUN/alerts.jsonl, and those that are wanted to a chat channel's webhook.

Other callbacks are given the Alerts and call `alert(event, text)`. Telling never blocks training and never ends it: one
background thread posts, each try has a time limit, and what cannot be delivered is dropped with a line in the log.
"""

import contextlib
import json
import logging
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from smol_train.callbacks.base import Callback
from smol_train.sections.watch import AlertEvent, AlertsConfig

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

ALERTS_NAME = "alerts.jsonl"
TRIES = 3
FIRST_WAIT_SECONDS = 1.0
"""Before the second try; doubled before the third."""
WAITING = 100
"""Messages that may wait for a slow webhook; a further one is dropped."""


class Alerts(Callback):
    """Active on the main rank, silent on the others. A context manager, which tells what ended the run by an exception."""

    def __init__(
        self, config: AlertsConfig, run: Path, is_main: bool, try_seconds: float = 10.0, drain_seconds: float = 20.0
    ) -> None:
        self.run, self.is_main, self.events = run, is_main, config.events
        self.url = config.webhook.get_secret_value() if config.webhook else None
        self.try_seconds, self.drain_seconds = try_seconds, drain_seconds
        self.waiting: queue.Queue[str] = queue.Queue(WAITING)
        self.dropped = 0
        """Messages that could not be delivered."""
        self.closed = threading.Event()
        self.poster = threading.Thread(target=self._post_for_ever, name="alerts", daemon=True)

    def __enter__(self) -> "Alerts":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            self.alert("crashed", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:500]}")
        self.close()

    def open(self) -> None:
        """From now on messages are posted."""
        if self.is_main and self.url:
            self.poster.start()

    def close(self) -> None:
        """Wait for what is on its way, as drain() does; nothing is posted after it."""
        self.drain()
        self._close()

    def alert(self, event: AlertEvent, text: str) -> None:
        """Tell `text`; returns at once. Any thread may call it."""
        if not self.is_main:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "text": text}
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            with (self.run / ALERTS_NAME).open("a", encoding="utf8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            logger.warning("%s cannot be written (%s): %s: %s", self.run / ALERTS_NAME, error.strerror, event, text)
        if self.url and event in self.events:
            try:
                self.waiting.put_nowait(f"{self.run.name} on {socket.gethostname()}: {event}: {text}")
            except queue.Full:
                self.dropped += 1
                logger.warning("alert dropped, %d wait already: %s: %s", WAITING, event, text)

    def drain(self) -> None:
        """Wait until what was told is delivered or dropped, but no longer than `drain_seconds`."""
        deadline = time.monotonic() + self.drain_seconds
        while self.waiting.unfinished_tasks and self.poster.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def on_fit_start(self, trainer: "Trainer") -> None:
        for text in trainer.damage:
            self.alert("damaged_checkpoint", text)
        step, total, ranks = trainer.state.step, trainer.total_steps, trainer.ranks.world_size
        self.alert("resumed" if step else "started", f"step {step:,} of {total:,} on {ranks} ranks")

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Told last, when it is known whether the last step is saved."""
        step, total, saved = trainer.state.step, trainer.total_steps, trainer.saved_step
        if trainer.exit_code:
            how = "saved" if saved == step else f"saved up to step {saved:,} only"
            self.alert("stopped", f"at step {step:,} of {total:,}, {how}; exit code {trainer.exit_code}")
        else:
            self.alert("done", f"{total:,} steps, {trainer.state.tokens:,} tokens")

    def _close(self) -> None:
        """The thread ends, after the try it is at: nothing is posted or logged by it once the run's folder is left."""
        self.closed.set()
        left = self.waiting.unfinished_tasks
        if left and self.poster.is_alive():
            self.dropped += left
            logger.warning("%d alerts dropped: not delivered within %g s of the end", left, self.drain_seconds)
        with contextlib.suppress(queue.Full):  # full: the thread does not wait for a message, and sees the event
            self.waiting.put_nowait("")

    def _post_for_ever(self) -> None:
        while True:
            text = self.waiting.get()
            if self.closed.is_set():
                return
            try:
                self._post(text)
            finally:
                self.waiting.task_done()

    def _post(self, text: str) -> None:
        assert self.url
        reason = ""
        for number in range(TRIES):
            if number and self.closed.wait(FIRST_WAIT_SECONDS * 2 ** (number - 1)):
                return
            try:
                request = urllib.request.Request(
                    self.url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
                )
                with contextlib.closing(urllib.request.urlopen(request, timeout=self.try_seconds)) as answer:
                    answer.read(1)
                return
            except Exception as error:  # whatever a network does: a run does not end for it
                # Only the kind: the text of some errors holds the URL, and with it the channel's secret.
                reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        if self.closed.is_set():
            return
        self.dropped += 1
        logger.warning("alert dropped after %d tries (%s): %s", TRIES, reason, text)
