"""What a command needs that runs for weeks: an end on request, patience with what may pass, a log with times."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.2
"""How often a wait looks whether it was asked to stop."""
LONGEST_WAIT = 3600.0
"""Seconds between two tries of the same thing, at most."""

Stop = Callable[[], bool]
"""Whether a stop was asked for."""


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Whether SIGTERM or SIGINT came, which do nothing else meanwhile."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda sent, _: came.append(sent)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pause(seconds: float, stop: Stop) -> None:
    """Wait, but not after a stop was asked for."""
    end = time.monotonic() + seconds
    while not stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_SECONDS))


def say(text: str) -> None:
    """A line of the log, with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class Later:
    """What could not be done for a reason that may pass: tried again after one round, two, four, .. an hour."""

    def __init__(self, first: float) -> None:
        self.first = first
        self.waiting: dict[str, str] = {}
        """Why, by name."""
        self._waits: dict[str, tuple[float, float]] = {}
        """(time of the next try, seconds waited for it)."""

    def put_off(self, name: str, why: str, at_least: float = 0.0) -> None:
        """`at_least` is in seconds, as the other side wishes."""
        seconds = min(2 * self._waits[name][1] if name in self._waits else self.first, LONGEST_WAIT)
        seconds = max(seconds, at_least)
        self._waits[name] = time.monotonic() + seconds, seconds
        self.waiting[name] = why
        say(f"{why}; tried again in {seconds:.0f} s")

    def is_due(self, name: str) -> bool:
        return name not in self._waits or time.monotonic() >= self._waits[name][0]

    def done(self, name: str) -> None:
        self._waits.pop(name, None)
        self.waiting.pop(name, None)
