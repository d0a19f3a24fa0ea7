"""SIGTERM, SIGUSR1 and SIGINT end the run cleanly: finish the step, save for any layout, exit 85 (requeue me)."""

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

from smol_train.callbacks.base import Callback

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
            logger.warning("%s received: saving after the current step, then exiting with 85", received.name)
            signal.signal(received, self.previous.pop(received, signal.SIG_DFL))
            trainer.request_stop(85)

        self.previous = {number: signal.signal(number, stop) for number in SIGNALS}

    def close(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
