"""One measurement of benchmarks.data_loader in a process of its own: python -m benchmarks.data_loader_job JOB.json RESULT.json.

Every loader hands out micro-batches of b windows of S tokens as torch tensors, in a shuffled order, from one dataset:

  ours       smol_data.loader.TrainLoader: through DALI; tokens, labels, loss mask, positions, document boundaries
  megatron   Megatron-Core's GPTDataset in torch's DataLoader without workers; cached masks and positions, not per document
  numpy      a memory map and a permutation of the epoch's windows; tokens and labels
  pread      plain os.pread of the same windows and nothing else: what the storage gives
"""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smol_train.timing import batches_per_second


@dataclasses.dataclass(frozen=True)
class Job:
    """What to measure."""

    loader: str
    folder: str
    """A dataset folder of smol_data with one shard, and Megatron's view of it beside: `megatron/X.bin`, `X.idx`."""
    sequence_length: int
    global_batch: int
    micro_batch: int
    steps: int
    """Length of the run, which decides how large an index is."""
    windows: int
    """Read in each of the timed loops; 0: only the first batch is timed."""


@dataclasses.dataclass
class Result:
    """Seconds, bytes and tokens per second."""

    first_batch: float
    """From opening to the first batch; imports are over before."""
    memory: int
    """Most private anonymous memory above what the imports left, until the first batch."""
    cold: float | None = None
    """Tokens per second, the page cache dropped before."""
    warm: float | None = None
    """Tokens per second, all files in the page cache."""


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    begin = _LOADERS[job.loader]()  # imports
    with _Peak() as peak:
        started = time.perf_counter()
        batches = begin(job)
        next(batches)
        result = Result(time.perf_counter() - started, 0)
    result.memory = peak.grown
    if job.windows:
        _drop_cache(job)
        result.cold = _rate(job, batches)
        for path in _files(job):
            path.read_bytes()
        result.warm = _rate(job, batches)
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(result)))
    os._exit(0)  # the loaders' threads have nothing left to do


def _rate(job: Job, batches: Iterator[Any]) -> float:
    for _ in range(4):  # what was prepared before the clock starts
        next(batches)
    rate = batches_per_second(batches, job.windows // job.micro_batch)
    return rate * job.micro_batch * job.sequence_length


def _files(job: Job) -> list[Path]:
    return sorted(Path(job.folder).glob("*.ds*"))


def _drop_cache(job: Job) -> None:
    """Without rights of an administrator: the kernel forgets clean pages of a file when asked to."""
    for path in _files(job):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class _Peak:
    """The most private anonymous memory, looked at every few milliseconds."""

    def __enter__(self) -> "_Peak":
        self._base = self._most = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._most = max(self._most, _anonymous())

    @property
    def grown(self) -> int:
        return self._most - self._base

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._most = max(self._most, _anonymous())


def _anonymous() -> int:
    """Bytes; file pages, which all processes share, are not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel reports RssAnon")


# --- the loaders: each imports first, then returns the function that opens and yields batches ---------------------------------

Begin = Callable[[Job], Iterator[Any]]


def _ours() -> Begin:
    import torch

    from smol_data.config import DataConfig
    from smol_data.loader import TrainLoader
    from smol_data.schedule import resolve_segments

    def begin(job: Job) -> Iterator[Any]:
        stage = {"name": "only", "steps": job.steps, "weights": {"tokens": 1.0}}
        data = DataConfig.model_validate(
            {
                "tokenizer": "synthetic",
                "sequence_length": job.sequence_length,
                "datasets": {"tokens": job.folder},
                "stages": [stage],
            }
        )
        segments = resolve_segments(data.stages, job.sequence_length, job.global_batch)
        return TrainLoader(data, segments, job.micro_batch, 0, 1, torch.device("cpu"))

    return begin


def _megatron() -> Begin:
    from types import SimpleNamespace

    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split
    from torch.utils.data import DataLoader

    def begin(job: Job) -> Iterator[Any]:
        prefix = str(next(Path(job.folder, "megatron").glob("*.idx")).with_suffix(""))
        indexed = IndexedDataset(prefix, multimodal=False, mmap=True)
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=job.sequence_length,
            split="1,0,0",
            tokenizer=SimpleNamespace(eod=0, vocab_size=None, unique_identifiers={}),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            path_to_cache=str(Path(job.folder, f"cache-{job.steps}-{os.getpid()}")),
        )
        documents = np.arange(indexed.sequence_lengths.shape[0], dtype=np.int32)
        dataset = GPTDataset(indexed, prefix, documents, job.steps * job.global_batch, Split.train, config)
        return iter(DataLoader(dataset, batch_size=job.micro_batch, shuffle=False, num_workers=0))

    return begin


def _numpy() -> Begin:
    import torch

    def begin(job: Job) -> Iterator[Any]:
        [shard] = Path(job.folder).glob("*.ds")
        tokens, length = np.memmap(shard, dtype="<u4", mode="r"), job.sequence_length
        windows = (len(tokens) - 1) // length
        generator = np.random.default_rng(1)
        while True:
            order = generator.permutation(windows)
            for first in range(0, windows - job.micro_batch, job.micro_batch):
                rows = np.stack([tokens[w * length : w * length + length + 1] for w in order[first : first + job.micro_batch]])
                batch = torch.from_numpy(rows.astype(np.int64))
                yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    return begin


def _pread() -> Begin:
    def begin(job: Job) -> Iterator[Any]:
        [shard] = Path(job.folder).glob("*.ds")
        descriptor, length = os.open(shard, os.O_RDONLY), job.sequence_length
        windows = (shard.stat().st_size // 4 - 1) // length
        generator = np.random.default_rng(1)
        while True:
            order = generator.permutation(windows).tolist()
            for first in range(0, windows - job.micro_batch, job.micro_batch):
                yield [os.pread(descriptor, (length + 1) * 4, w * length * 4) for w in order[first : first + job.micro_batch]]

    return begin


_LOADERS: dict[str, Callable[[], Begin]] = {"ours": _ours, "megatron": _megatron, "numpy": _numpy, "pread": _pread}

if __name__ == "__main__":
    main()
