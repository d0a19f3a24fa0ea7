"""What a sample of a run was: its window, cut at document borders, with the targets that the loss left out.

Behind `inspect`. The window is read as the loader reads it (smol_data.shards); the rest is looked up in the shards' indexes.
What the loss leaves out are the targets at document ends, as in smol_data.batch.pack, which is not used because it loads torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smol_data.order import Location, Order
from smol_data.schedule import Segment, step_of
from smol_data.shards import TokenDataset, Window


@dataclass(frozen=True)
class Piece:
    """The part of one document that lies in a window."""

    document: int
    """Number in the dataset, from 0 over all shards."""
    shard: str
    """File that holds it."""
    first: int
    """First token of the piece, counted from the document's beginning."""
    length: int
    """Tokens of the whole document."""
    ids: NDArray[Any]
    """Of the piece."""
    masked: bool
    """Its first token is a target that the loss leaves out: it cannot be told from the document before."""

    @property
    def end(self) -> int:
        """End of the piece (exclusive), counted from the document's beginning."""
        return self.first + len(self.ids)


@dataclass(frozen=True)
class SeenWindow:
    """One sample."""

    step: int
    """Optimizer step that trains it, as logs count: the first is 1."""
    location: Location
    first_token: int
    """Of the window in the dataset's stream."""
    pieces: list[Piece]
    """All S + 1 tokens of the window: S inputs, and the last target."""
    targets: int
    """Targets that count, of S."""

    @property
    def ids(self) -> NDArray[Any]:
        """[S + 1]"""
        return np.concatenate([piece.ids for piece in self.pieces])


def seen_windows(
    segments: Sequence[Segment], seed: int, datasets: Mapping[str, TokenDataset], first: int, stop: int
) -> Iterator[SeenWindow]:
    """Samples [first, stop) of a run, in order; `datasets` are those of their stages. One window is held at a time.

    Raises DataError for a sample that the run does not train.
    """
    order = Order(segments, seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    for location in order.locate_range(first, stop):
        dataset = datasets[location.dataset]
        window = dataset.window(location.window)
        start = location.window * dataset.stride
        targets = dataset.sequence_length - len(window.document_ends)
        yield SeenWindow(
            step_of(segments, location.sample) + 1, location, start, list(_pieces(dataset, start, window)), targets
        )


def _pieces(dataset: TokenDataset, start: int, window: Window) -> Iterator[Piece]:
    files = dataset.files
    for begin, end in pairwise([0, *window.document_ends.tolist(), len(window.tokens)]):
        number = files.document_at(start + begin)
        shard, offset = files.shard_at(start + begin)
        local = number - files.document_starts[shard]
        before = int(files.document_ends(shard, local - 1, 1)[0]) if local else 0
        after = int(files.document_ends(shard, local, 1)[0])
        name, ids = files.shards[shard].name, window.tokens[begin:end]
        yield Piece(number, name, offset - before, after - before, ids, masked=begin > 0)
