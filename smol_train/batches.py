"""A rank's micro-batches as the trainer takes them: the loader for its place, timed, and with a look ahead."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from smol_data.batch import PackedBatch
from smol_data.loader import TrainLoader
from smol_data.schedule import Segment
from smol_train.config import RunConfig
from smol_train.parallel import Ranks


def open_loader(config: RunConfig, segments: Sequence[Segment], ranks: Ranks, step: int) -> TrainLoader:
    """This rank's micro-batches of a run of these segments, from the given step on."""
    return TrainLoader(
        config.data,
        segments,
        micro_batch_size=config.train.micro_batch_size,
        rank=ranks.data_parallel_rank,
        world_size=ranks.data_parallel_size,
        device=ranks.device,
        start_step=step,
        vocab_size=config.model.vocab_size,
        context=ranks.context,
        group=config.parallel.micro_batch_group,
    )


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
