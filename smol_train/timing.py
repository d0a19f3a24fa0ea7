"""Where the time of a step goes, and how fast a loader is: what the self-test and the benchmarks time with.

Imports no torch by itself: a benchmark measures how much memory its loaders take.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from smol_train.callbacks.base import Callback, Metrics

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

PARTS = ("data_wait", "forward_backward", "optimizer")
"""Of a step, as the trainer times them."""

Interval = tuple[float, float]
"""[start, end)"""


class StepTimer(Callback):
    """Seconds of the steps after the first `warmup` of this process, `count` of them or all. Put it last: what the callbacks
    before it take is in `wall`, from the end of one step to the end of the next."""

    def __init__(self, warmup: int, count: int | None = None) -> None:
        self.warmup, self.count, self.steps, self.last = warmup, count, 0, 0.0
        self.wall: list[float] = []
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}
        self.outside: list[float] = []
        """Of `wall`, outside the trainer's step: the callbacks."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        self.last = time.perf_counter()

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        now = time.perf_counter()
        self.steps += 1
        if self.steps > self.warmup and len(self.wall) != self.count:
            self.wall.append(now - self.last)
            self.outside.append(now - self.last - metrics["perf/step_seconds"])
            for part, seconds in self.parts.items():
                seconds.append(metrics[f"perf/{part}_seconds"])
        self.last = time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Seconds of a step: `wall`, `outside` and the parts."""
        lists = {"wall": self.wall, "outside": self.outside, **self.parts}
        return {name: median(seconds) for name, seconds in lists.items()}


def batches_per_second(batches: Iterator[Any], count: int, finish: Callable[[], None] = lambda: None) -> float:
    """Rate of the next `count` batches; `finish` waits for what is under way."""
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    finish()
    return count / (time.perf_counter() - started)


def uncovered(intervals: Iterable[Interval], by: Iterable[Interval]) -> float:
    """Length of the union of `intervals` that lies in none of `by`: communication that no computation hides."""
    return _length([*intervals, *(others := list(by))]) - _length(others)


def _length(intervals: list[Interval]) -> float:
    """Of the union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
