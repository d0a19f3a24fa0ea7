"""The two passes of `shuffle` over the data: chunks sorted into runs, runs gathered into shards. Both read and write in order.

    dataset --make_run--> runs: chunks [a, b) of the dataset, sorted by where they go      (reads the dataset once, in order)
            --make_shard--> shards: places [p, q) of the new order, gathered from all runs (one slice of each run at a time)

Chunk i goes to place permute(i) of all places, so the result is that of one shuffle in memory, whatever the number of runs,
pieces and workers. Byte layout of a run of n chunks of C tokens, m document ends inside them: uint64 places [n], ascending;
uint64 first end of each chunk [n + 1]; uint32 ends inside a chunk, from its start [m]; tokens [n, C] in the dataset's dtype.

The content is checked without regard to order: a 128-bit hash of every chunk's tokens and ends, summed over all chunks
where they are read and again where they are written. Memory: the tokens of one run or of one piece, and little more.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.output import Part, Working
from data_tools.parallel import Advance
from data_tools.shard_files import HashedFile, metadata_note
from smol_config import UserError
from smol_data.files import TokenFiles
from smol_data.manifest import Manifest
from smol_data.open_files import OpenFiles
from smol_data.permutation import permute_many, round_keys

_STEP = 8 << 20  # bytes moved at a time
_SUM = 1 << 128


@dataclass(frozen=True)
class Plan:
    """What all passes need to know. `chunks` are of `width` tokens."""

    working: Working
    source: Path
    manifest: Manifest
    seed: int
    epoch: int
    width: int
    chunks: int
    run_chunks: int
    """Chunks in a run, and in a piece of a shard: what fits in a worker's memory."""
    shard_chunks: int

    @property
    def runs(self) -> list[str]:
        return [f"run-{number:05d}" for number in range(-(-self.chunks // self.run_chunks))]

    @property
    def shards(self) -> list[str]:
        return [f"shard-{number:05d}" for number in range(-(-self.chunks // self.shard_chunks))]

    @property
    def chunk_bytes(self) -> int:
        return self.width * self.manifest.token_dtype.itemsize

    @property
    def step(self) -> int:
        """Chunks moved at a time; two such blocks live beside a run."""
        return max(1, min(_STEP // self.chunk_bytes, self.run_chunks // 16))


@dataclass(frozen=True)
class PartTask:
    """Run or shard `number` of a plan."""

    plan: Plan
    number: int


@dataclass(frozen=True)
class _Chunks:
    """Chunks with their document ends: `ends[first_end[i] : first_end[i + 1]]` are inside chunk i, from its start."""

    tokens: NDArray[Any]
    """[n, width]"""
    first_end: NDArray[np.uint64]
    """[n + 1]"""
    ends: NDArray[np.uint32]

    def content(self) -> int:
        """The sum of the chunks' hashes, below 2**128."""
        total = 0
        bounds = self.first_end.tolist()
        for row, begin, stop in zip(self.tokens, bounds, bounds[1:], strict=False):
            total += xxhash.xxh3_128_intdigest(row.data, seed=xxhash.xxh3_64_intdigest(self.ends[begin:stop].data))
        return total % _SUM


def places(plan: Plan, first: int, count: int) -> NDArray[np.uint64]:
    """Where chunks [first, first + count) of the dataset go, of 0 .. chunks - 1. Frozen: a change would reorder datasets."""
    keys = round_keys("chunk shuffle", 1, plan.seed, plan.epoch)
    return permute_many(np.arange(first, first + count, dtype=np.uint64), plan.chunks, keys)


# --- first pass --------------------------------------------------------------------------------------------------------


def make_run(task: PartTask, advance: Advance) -> Part:
    """Read a range of chunks and write them sorted by place; `advance` counts bytes. Raises DataError."""
    plan = task.plan
    first = task.number * plan.run_chunks
    count = min(plan.run_chunks, plan.chunks - first)
    goes_to = places(plan, first, count)
    order = np.argsort(goes_to)
    row_of = np.empty(count, dtype=np.int64)
    row_of[order] = np.arange(count)
    tokens = np.empty((count, plan.width), dtype=plan.manifest.token_dtype)
    counts, ends, content = [], [], 0
    for begin, chunks in _read_chunks(plan, first, count):
        tokens[row_of[begin : begin + len(chunks.tokens)]] = chunks.tokens
        counts.append(np.diff(chunks.first_end))
        ends.append(chunks.ends)
        content += chunks.content()
        advance(chunks.tokens.nbytes)
    first_end, ends_by_row = _reordered(np.concatenate(counts), np.concatenate(ends), order)
    name = plan.runs[task.number]
    with plan.working.attempt(name) as folder:
        with HashedFile(folder / name) as file:
            for array in (goes_to[order], first_end, ends_by_row):
                file.write(array)
            for begin in range(0, count, plan.step):
                file.write(tokens[begin : begin + plan.step])
        details = {"chunks": count, "ends": len(ends_by_row), "content": f"{content % _SUM:032x}"}
        return plan.working.finish(name, folder, Part(files=[file.entry()], details=details))


def _read_chunks(plan: Plan, first: int, count: int) -> Iterator[tuple[int, _Chunks]]:
    """Chunks [first, first + count) of the dataset, some at a time: (number from `first` on, chunks)."""
    opened = OpenFiles()
    files = TokenFiles(plan.source, plan.manifest, opened)
    try:
        for begin in range(0, count, plan.step):
            at, size = (first + begin) * plan.width, min(plan.step, count - begin)
            tokens = files.tokens(at, size * plan.width).reshape(size, plan.width)
            chunk, end = np.divmod(files.ends_between(at, at + size * plan.width) - at, plan.width)
            inside = end > 0  # where a chunk ends a document ends anyway
            counts = np.bincount(chunk[inside], minlength=size)
            yield begin, _Chunks(tokens, _starts(counts), end[inside].astype(np.uint32))
    finally:
        opened.close()


def _starts(counts: NDArray[Any]) -> NDArray[np.uint64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)


def _reordered(
    counts: NDArray[Any], ends: NDArray[np.uint32], order: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """`ends` in groups of `counts`, the groups put into `order`: (first of each group and the end, ends)."""
    begins = _starts(counts).astype(np.int64)[:-1]
    first = _starts(counts[order])
    index = np.repeat(begins[order] - first[:-1].astype(np.int64), counts[order].astype(np.int64))
    index += np.arange(len(ends))
    return first, ends[index]


# --- second pass -------------------------------------------------------------------------------------------------------


def make_shard(task: PartTask, advance: Advance) -> Part:
    """Gather a range of places from all runs and write it as `.ds`, `.ds.index` and `.ds.metadata`; `advance` counts bytes.

    Raises UserError when the runs do not hold each place once.
    """
    plan, name = task.plan, task.plan.shards[task.number]
    first = task.number * plan.shard_chunks
    count = min(plan.shard_chunks, plan.chunks - first)
    runs, content, documents = [_Run(plan, run) for run in plan.runs], 0, 0
    with plan.working.attempt(name) as folder, ExitStack() as stack:
        shard = f"{task.number:05d}_shuffled.ds"
        token_file = stack.enter_context(HashedFile(folder / shard))
        index_file = stack.enter_context(HashedFile(folder / f"{shard}.index"))
        for begin in range(0, count, plan.run_chunks):
            chunks = _gather(plan, runs, first + begin, min(plan.run_chunks, count - begin))
            content += chunks.content()
            for row in range(0, len(chunks.tokens), plan.step):
                token_file.write(chunks.tokens[row : row + plan.step])
                advance(chunks.tokens[row : row + plan.step].nbytes)
            ends = _document_ends(chunks, begin * plan.width)
            documents += len(ends)
            index_file.write(ends)
            del chunks  # else it would live on while the next piece is gathered
        note = stack.enter_context(HashedFile(folder / f"{shard}.metadata"))
        size = plan.manifest.token_dtype.itemsize
        note.write(metadata_note(plan.manifest.tokenizer.sha256, size, count * plan.width))
        stack.close()
        entries = [token_file.entry(tokens=count * plan.width, documents=documents), index_file.entry(), note.entry()]
        return plan.working.finish(name, folder, Part(files=entries, details={"content": f"{content % _SUM:032x}"}))


def _gather(plan: Plan, runs: list["_Run"], first: int, count: int) -> _Chunks:
    """The chunks of places [first, first + count), in order."""
    tokens = np.empty((count, plan.width), dtype=plan.manifest.token_dtype)
    rows, counts, ends = [], [], []
    for run in runs:
        with run:
            for begin, stop in run.slices(first, first + count):
                row = run.read("<u8", begin, stop - begin).astype(np.int64) - first
                first_end = run.read("<u8", run.chunks + begin, stop - begin + 1)
                tokens[row] = run.tokens(begin, stop)
                rows.append(row)
                counts.append(np.diff(first_end))
                ends.append(run.ends(first_end))
    row_of = np.concatenate(rows)
    order = np.argsort(row_of)
    if not np.array_equal(row_of[order], np.arange(count)):
        raise UserError(f"the runs of {plan.working.target} do not hold each chunk once; give the command again with --fresh")
    return _Chunks(tokens, *_reordered(np.concatenate(counts), np.concatenate(ends), order))


def _document_ends(chunks: _Chunks, offset: int) -> NDArray[Any]:
    """Ends of all documents in the shard, where the first chunk begins at token `offset`: inside chunks, and where they end."""
    count, width = chunks.tokens.shape
    begins = offset + np.arange(count) * width
    inside = np.repeat(begins, np.diff(chunks.first_end).astype(np.int64)) + chunks.ends
    return np.sort(np.concatenate((inside, begins + width))).astype("<u8")


class _Run:
    """A run, read by position."""

    def __init__(self, plan: Plan, name: str) -> None:
        record = plan.working.record(name)
        if record is None:
            raise UserError(f"part {name} of {plan.working.target} is not finished; give the same command again to go on")
        self.plan, self.path = plan, plan.working.files / name
        self.chunks, self._ends = int(record.details["chunks"]), int(record.details["ends"])

    def __enter__(self) -> "_Run":
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def slices(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The run's chunks [begin, stop) that go to places [first, last), some at a time."""
        begin, stop = (bisect_left(range(self.chunks), place, key=self._place) for place in (first, last))
        for at in range(begin, stop, self.plan.step):
            yield at, min(at + self.plan.step, stop)

    def read(self, dtype: str, first: int, count: int, offset: int = 0) -> NDArray[Any]:
        """Items [first, first + count) of an array that begins at byte `offset`."""
        item = np.dtype(dtype).itemsize
        data = os.pread(self._descriptor, count * item, offset + first * item)
        if len(data) != count * item:
            raise UserError(f"{self.path} was cut short; check the disk and give the same command again")
        return np.frombuffer(data, dtype=dtype)

    def ends(self, first_end: NDArray[Any]) -> NDArray[np.uint32]:
        """The document ends between the first and the last of these."""
        return self.read("<u4", int(first_end[0]), int(first_end[-1] - first_end[0]), 8 * (2 * self.chunks + 1))

    def tokens(self, begin: int, stop: int) -> NDArray[Any]:
        """Tokens of the run's chunks [begin, stop), [n, width]."""
        width, offset = self.plan.width, 8 * (2 * self.chunks + 1) + 4 * self._ends
        dtype = self.plan.manifest.token_dtype.str
        return self.read(dtype, begin * width, (stop - begin) * width, offset).reshape(stop - begin, width)

    def _place(self, index: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, 8 * index), "little")
