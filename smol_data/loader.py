"""The input pipeline: NVIDIA DALI hands the trainer packed batches, on its device, in the order of smol_data.order.

    order.locate_range -> shards.window -> batch.pack     one background thread of this process, some parcels ahead
        -> DALI external_source [-> pinned memory -> GPU] -> batch.expand -> PackedBatch of torch tensors

A loader keeps no state but its place: started at step k it gives what a loader that ran from step 0 would give from step k
on. So a checkpoint stores a step and the data's fingerprint (smol_data.order), and nothing of the loader.

Everything runs in this process: worker processes start slowly, are no faster for token windows, and get in the way of the
forks that asynchronous checkpoints make. DALI calls its source in the thread that asks for a batch, hence the thread of ours.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from smol_config import nearest
from smol_data.batch import ALONE, ContextRank, HostBatch, Layout, PackedBatch, Parcel, context_part, expand, join, pack
from smol_data.config import DataConfig
from smol_data.manifest import DataError
from smol_data.open_files import OpenFiles, ReadStats
from smol_data.order import Location, Order
from smol_data.schedule import Segment, batch_at, total_steps
from smol_data.shards import open_datasets

PREFETCH = 2  # parcels read ahead of DALI: a minute of training hides a disk that stalls, at 4 bytes a token
READ_AHEAD = 16  # micro-batches more whose windows the system is asked to read: a slow disk works on many at a time

_PARCEL_TOKENS, _PARCEL_BATCHES = 2**20, 128  # micro-batches travel together up to these: a trip costs about a millisecond
_IN_DALI = 2  # parcels in DALI's own queue, on the device


class TrainLoader(Iterator[PackedBatch]):
    """This rank's micro-batches, step after step, to the end of the run.

    Of a step with the samples [first, first + B), micro-batch m on data-parallel rank r of R takes the b samples from
    first + (m*R + r)*b on: the ranks together take the global batch, whatever R and b are.
    """

    def __init__(
        self,
        data: DataConfig,
        segments: Sequence[Segment],
        micro_batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        start_step: int = 0,
        vocab_size: int | None = None,
        prefetch: int = PREFETCH,
        context: ContextRank = ALONE,
        group: int = 1,
    ) -> None:
        """Open the datasets that steps from `start_step` on draw from.

        `segments` are the whole run's (order.resolve_segments); `rank` and `world_size` count data-parallel ranks;
        `vocab_size` is the model's; `context` is this rank among those that share its rows; a step has whole groups of `group`
        micro-batches. Raises DataError when a dataset does not open or is of another tokenizer, or a batch size does not
        divide.
        """
        ahead = [segment for segment in segments if segment.end_step > start_step]
        _check_division(ahead, micro_batch_size, world_size, group)
        names = {name for segment in ahead for name, weight in segment.weights.items() if weight > 0}
        folders = {name: folder for name, folder in data.datasets.items() if name in names}
        self._files = OpenFiles()
        self.datasets = open_datasets(folders, data.sequence_length, data.tokenizer, vocab_size, self._files)
        self.digests = {name: dataset.manifest.digest for name, dataset in self.datasets.items()}
        """Of the datasets that are open, for order.fingerprint."""
        self.dataset_names = list(data.datasets)
        """By the numbers in PackedBatch.datasets; all of them, so that a number does not depend on the start."""
        self._numbers = {name: number for number, name in enumerate(self.dataset_names)}
        self._segments = list(segments)
        self._order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in self.datasets.items()})
        self._micro_batch_size, self._rank, self._world_size = micro_batch_size, rank, world_size
        self._document_mask, self._multiple = data.document_mask, context.multiple
        self._feed = _Feed(self._batches(start_step), device, prefetch, context)

    def micro_batches(self, step: int) -> int:
        """How many micro-batches this rank gets for a step."""
        return batch_at(self._segments, step).batch_size // (self._micro_batch_size * self._world_size)

    def take_read_stats(self) -> ReadStats:
        """Of this rank's reads since the last call."""
        return self._files.take_stats()

    def __next__(self) -> PackedBatch:
        return next(self._feed)

    def close(self) -> None:
        """Stop the thread and free DALI's buffers and the files."""
        self._feed.close()
        for dataset in self.datasets.values():
            dataset.close()

    def _batches(self, start_step: int) -> Iterator[HostBatch]:
        """This rank's micro-batches, each asked for READ_AHEAD micro-batches before it is read."""
        ahead: deque[list[Location]] = deque()
        for places in self._places(start_step):
            for place in places:
                self.datasets[place.dataset].will_need(place.window)
            ahead.append(places)
            if len(ahead) > READ_AHEAD:
                yield self._read(ahead.popleft())
        while ahead:
            yield self._read(ahead.popleft())

    def _places(self, start_step: int) -> Iterator[list[Location]]:
        """Where the samples of each of this rank's micro-batches come from."""
        size, at_once = self._micro_batch_size, self._micro_batch_size * self._world_size
        for step in range(start_step, total_steps(self._segments)):
            first, samples, _ = batch_at(self._segments, step)
            # The whole batch at once: what a rank saves by locating its own samples alone, it loses on smaller arrays.
            places = self._order.locate_range(first, first + samples)
            for begin in range(self._rank * size, samples, at_once):
                yield places[begin : begin + size]

    def _read(self, places: list[Location]) -> HostBatch:
        windows = [self.datasets[place.dataset].window(place.window) for place in places]
        numbers = [self._numbers[place.dataset] for place in places]
        return pack(windows, self._document_mask, multiple=self._multiple, datasets=numbers)


class HeldOutLoader:
    """The first windows of one held-out dataset, the same at every iteration.

    Micro-batch m on rank r of R takes the b windows from (m*R + r)*b on. Every rank gets the same number of micro-batches;
    where windows run out, the last one stands in with all its targets masked.
    """

    def __init__(
        self,
        data: DataConfig,
        name: str,
        windows: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        vocab_size: int | None = None,
        prefetch: int = PREFETCH,
        context: ContextRank = ALONE,
        group: int = 1,
    ) -> None:
        """`name` is one of data.held_out; a dataset of fewer than `windows` windows is taken whole; micro-batches come in
        whole groups of `group`. Raises DataError."""
        if name not in data.held_out:
            raise DataError(f"held-out dataset {name!r} is not in data.held_out; {nearest(name, data.held_out)}")
        self._dataset = open_datasets({name: data.held_out[name]}, data.sequence_length, data.tokenizer, vocab_size)[name]
        self.windows = min(windows, self._dataset.num_windows)
        """Windows over all ranks."""
        self._micro_batch_size, self._rank, self._world_size, self._group = micro_batch_size, rank, world_size, group
        self._document_mask = data.document_mask
        self._device, self._prefetch, self._context = device, prefetch, context

    def __len__(self) -> int:
        """Micro-batches of each rank."""
        return -(-self.windows // (self._micro_batch_size * self._world_size * self._group)) * self._group

    def __iter__(self) -> Iterator[PackedBatch]:
        feed = _Feed(self._batches(), self._device, self._prefetch, self._context)
        try:
            yield from feed
        finally:
            feed.close()

    def close(self) -> None:
        """Close the dataset's files."""
        self._dataset.close()

    def _batches(self) -> Iterator[HostBatch]:
        for number in range(len(self)):
            first = (number * self._world_size + self._rank) * self._micro_batch_size
            indices = range(first, first + self._micro_batch_size)
            windows = [self._dataset.window(min(i, self.windows - 1)) for i in indices]
            stand_ins = max(0, min(self._micro_batch_size, indices.stop - self.windows))
            yield pack(windows, self._document_mask, stand_ins, self._context.multiple)


def _check_division(segments: Sequence[Segment], micro_batch_size: int, world_size: int, group: int) -> None:
    at_once = micro_batch_size * world_size
    for segment in segments:
        if segment.batch_size % at_once:
            raise DataError(
                f"train.global_batch_size={segment.batch_size} (stage {segment.stage!r}, step {segment.first_step}) is not a "
                f"multiple of "
                f"train.micro_batch_size={micro_batch_size} x {world_size} data-parallel ranks = {at_once}; change one of them"
            )
        if segment.batch_size // at_once % group:
            raise DataError(
                f"train.global_batch_size={segment.batch_size} (stage {segment.stage!r}) gives each of {world_size} "
                f"data-parallel ranks {segment.batch_size // at_once} micro-batches of {micro_batch_size}, no multiple of the "
                f"parallel.pipeline={group} that an interleaved pipeline takes at a time; change one of them"
            )


def _parcels(batches: Iterator[HostBatch]) -> Iterator[Parcel]:
    """Micro-batches in parcels: the first alone, so that it comes soon, then twice as many each time, up to the limits.

    A fault comes after the batches before it.
    """
    held: list[HostBatch] = []
    limit = 1
    try:
        for batch in batches:
            held.append(batch)
            if len(held) == limit or sum(int(one.cu_seqlens[-1]) for one in held) >= _PARCEL_TOKENS:
                yield join(held)
                held, limit = [], min(2 * limit, _PARCEL_BATCHES)
    except Exception as fault:
        if held:
            yield join(held)
        raise fault from None
    if held:
        yield join(held)


class _Feed(Iterator[PackedBatch]):
    """Batches through DALI to torch tensors on `device`: one parcel a DALI sample, so that it may differ in length.

    An exception of the source is raised as itself, after the batches before it have been handed out.
    """

    def __init__(self, batches: Iterator[HostBatch], device: torch.device, prefetch: int, context: ContextRank) -> None:
        self._context = context
        self._parcels = _parcels(batches)
        self._fault: BaseException | None = None
        self._layouts: deque[Layout] = deque()  # of the parcels in DALI, whose order it keeps
        self._arrived: deque[PackedBatch] = deque()  # of the parcel being handed out
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="smol_data")
        self._pending: deque[Future] = deque(self._thread.submit(next, self._parcels, None) for _ in range(prefetch))
        self._outputs: DALIGenericIterator | None = DALIGenericIterator(
            self._pipeline(device), ["array"], prepare_first_batch=False
        )

    def __next__(self) -> PackedBatch:
        if not self._arrived:
            self._unpack()
        batch = self._arrived.popleft()
        return context_part(batch, self._context) if self._context.size > 1 else batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._pending.clear()
        self._arrived.clear()
        self._outputs = None  # the last reference to the pipeline, which frees its buffers when it goes

    def _unpack(self) -> None:
        """Take the next parcel from DALI; raises StopIteration at the end, and a fault of the source as itself."""
        if self._outputs is None:
            raise StopIteration
        try:
            [out] = next(self._outputs)
        except StopIteration:
            if self._fault is None:
                raise
            raise self._fault from None
        self._arrived.extend(expand(out["array"][0], self._layouts.popleft()))

    def _pipeline(self, device: torch.device) -> Pipeline:
        on_gpu = device.type == "cuda"
        device_id = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
        pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=_IN_DALI)
        with pipeline:
            array = fn.external_source(self._source, batch=True)
            pipeline.set_outputs(array.gpu() if on_gpu else array)
        return pipeline

    def _source(self) -> NDArray[np.int32]:
        """One DALI batch of one sample, hence a leading dimension of 1. DALI calls it from `__next__`."""
        try:
            parcel = self._pending.popleft().result()
        except Exception as fault:
            # Told to DALI as the end, so that the parcels already in its queue still come out before the fault does.
            self._fault = fault
            raise StopIteration from fault
        if parcel is None:
            raise StopIteration
        self._pending.append(self._thread.submit(next, self._parcels, None))
        self._layouts.append(parcel.layout)
        return parcel.array[None]
