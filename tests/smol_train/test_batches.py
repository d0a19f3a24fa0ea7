"""The loader's batches as the trainer takes them."""

import time
from collections.abc import Iterator

from smol_train.batches import Batches


def test_a_disk_that_stalls_shows_as_waiting_for_data() -> None:
    def stalling() -> Iterator[str]:
        yield "at once"
        time.sleep(0.2)
        yield "late"

    batches = Batches(stalling())  # type: ignore[arg-type]
    next(batches)
    before = batches.seconds
    next(batches)
    assert batches.seconds - before >= 0.2


def test_batches_looked_at_ahead_come_next() -> None:
    batches = Batches(iter(range(5)))  # type: ignore[arg-type]
    assert batches.peek(2) == [0, 1] and batches.peek(1) == [0]
    assert list(batches) == [0, 1, 2, 3, 4]
