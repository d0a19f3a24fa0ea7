"""Which rows are taken, how often, and in which order: the mixture, as pure functions of the configuration and the seed.

    share    before tokenising: the rows whose rank in a seeded permutation of the source is below share x rows
    tokens   after it: whole passes through the source, then samples in a seeded order until the tokens are there
    order    one seeded permutation of all that is drawn
    packing  best fit decreasing: each sample goes into the fullest row that has room for it

The permutation is the one of the pre-training's data order, so the same configuration gives the same bytes on every machine.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smol_data.permutation import permute_many, round_keys

PACK_AT_A_TIME = 1 << 16
"""Samples packed together: rows stay filled to 99 % and more, and neighbours in the order stay near each other."""


def permuted(size: int, seed: int, *purpose: str) -> NDArray[np.int64]:
    """A permutation of 0 .. size - 1 for a purpose: entry i is where i goes."""
    return _ranks(np.arange(size, dtype=np.uint64), size, seed, *purpose)


def _ranks(indices: NDArray[np.uint64], size: int, seed: int, *purpose: str) -> NDArray[np.int64]:
    return permute_many(indices, size, round_keys("post_training", seed, *purpose)).astype(np.int64)


@dataclass(frozen=True)
class RowChoice:
    """How often each row of a source is taken by its share."""

    name: str
    total: int
    """Rows of the source."""
    share: float
    seed: int
    limit: int | None = None
    """preview: no more rows than this."""

    def times(self, first: int, count: int) -> NDArray[np.uint16]:
        """For rows first .. first + count - 1."""
        if not count:
            return np.zeros(0, dtype=np.uint16)
        ranks = _ranks(np.arange(first, first + count, dtype=np.uint64), self.total, self.seed, "rows", self.name)
        whole = int(self.share)
        extra = round((self.share - whole) * self.total)
        times = whole + (ranks < extra)
        # The first ranks are the rows that any share takes, so a preview's few rows are among them.
        return np.where(ranks < self.limit, times, 0).astype(np.uint16) if self.limit else times.astype(np.uint16)

    @property
    def rows(self) -> int:
        """Rows that are taken at least once."""
        taken = self.total if self.share >= 1 else round(self.share * self.total)
        return min(taken, self.limit) if self.limit else taken


def times_for_tokens(tokens: int, lengths: NDArray[np.int32], seed: int, name: str) -> NDArray[np.int64]:
    """How often each sample of source `name` is taken so that it gives `tokens`, or up to one sample more."""
    passes, rest = divmod(tokens, int(lengths.sum(dtype=np.int64)))
    order = np.argsort(permuted(len(lengths), seed, "tokens", name))
    below = np.cumsum(lengths[order], dtype=np.int64) - lengths[order]
    times = np.full(len(lengths), passes, dtype=np.int64)
    times[order[below < rest]] += 1
    return times


def draw(times: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The samples' numbers, each as often as `times` says, in the order of training."""
    drawn = np.repeat(np.arange(len(times), dtype=np.int64), times)
    ordered = np.empty_like(drawn)
    ordered[permuted(len(drawn), seed, "order")] = drawn
    return ordered


def pack(lengths: NDArray[np.int32], capacity: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows of places in `lengths`; the tokens of each row sum to `capacity` or less. No place is lost or cut.

    The rows are in a seeded order, since best fit puts those of like lengths side by side.
    """
    rows: list[NDArray[np.int64]] = []
    for start in range(0, len(lengths), PACK_AT_A_TIME):
        rows += _best_fit(lengths[start : start + PACK_AT_A_TIME], capacity, start)
    return [rows[place] for place in np.argsort(permuted(len(rows), seed, "packed"))] if rows else []


def _best_fit(lengths: Sequence[int] | NDArray[np.int32], capacity: int, start: int) -> list[NDArray[np.int64]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[place])
        assert length <= capacity, "overlong samples are left out, and documents cut, before packing"
        found = bisect_left(room, (length, -1))
        if found == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(found)
        rows[row].append(start + place)
        if free > length:
            entry = (free - length, row)
            room.insert(bisect_left(room, entry), entry)
    return [np.array(row, dtype=np.int64) for row in rows]
