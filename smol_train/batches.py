"""The loader's micro-batches as the trainer takes them: timed, and with a look ahead."""

import time
from collections import deque
from collections.abc import Iterator

from smol_data.batch import PackedBatch


class Batches:
    """An iterator that adds up how long it was waited for, and can be looked into ahead."""

    def __init__(self, inner: Iterator[PackedBatch]) -> None:
        self.inner, self.seconds = inner, 0.0
        self._ahead: deque[PackedBatch] = deque()

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        if self._ahead:
            return self._ahead.popleft()
        started = time.perf_counter()
        batch = next(self.inner)
        self.seconds += time.perf_counter() - started
        return batch

    def peek(self, count: int) -> list[PackedBatch]:
        """The next `count` batches, which stay the next."""
        while len(self._ahead) < count:
            self._ahead.append(next(self.inner))
        return list(self._ahead)[:count]
