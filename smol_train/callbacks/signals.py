"""What reaches a run from outside, while it goes on.

    SIGTERM, SIGUSR1, SIGINT    finish the step, save for any layout, exit 85 (start me again)
    RUN/stop                    finish the step, save for any layout, exit 93 (do not start me again)
    RUN/save                    save for any layout, go on
    RUN/profile                 record the next steps (profiling.py), go on

`touch` makes the file, the main rank takes it away when it has seen it. What one rank heard, all ranks know after the step's
one collective (Trainer.request_stop, Trainer.request). A person who stops a run does not want it back from the queue at
once, so RUN/stop is 93 and wins over a signal; and it is not 0, on which jobs that wait for the finished run would start.
"""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from smol_train.callbacks.base import Callback
from smol_train.exit_codes import REFUSED, REQUEUE

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(Callback):
    """One rank that hears a signal stops all. A second signal of the same kind acts as if this were not here."""

    def __init__(self) -> None:
        self.previous: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: "Trainer") -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            received = signal.Signals(number)
            logger.warning("%s received: saving after the current step, then exiting with %d", received.name, REQUEUE)
            signal.signal(received, self.previous.pop(received, signal.SIG_DFL))
            trainer.request_stop(REQUEUE)

        self.previous = {number: signal.signal(number, stop) for number in SIGNALS}

    def close(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}


class TriggerFiles(Callback):
    """The main rank looks for the files before each step."""

    def on_step_start(self, trainer: "Trainer") -> None:
        if not trainer.ranks.is_main:
            return
        if _taken(trainer.output_dir / "stop"):
            trainer.request_stop(REFUSED)
        if _taken(trainer.output_dir / "save"):
            trainer.request("save")
        if _taken(trainer.output_dir / "profile"):
            trainer.request("profile")


def _taken(path: Path) -> bool:
    """Whether `path` is there; it is not any more."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:  # a folder of that name, or one that may not be changed: it would ask again at each step
        logger.warning("%s cannot be removed (%s), so it asks for nothing; remove it", path, error.strerror)
        return False
    logger.warning("%s seen: it is done after the current step", path)
    return True
