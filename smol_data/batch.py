"""Windows to packed batches: tokens, labels, loss mask, positions and document boundaries.

    [Window, ...]  --pack-->  HostBatch (numpy)  --join-->  Parcel: one array  --DALI, expand-->  [PackedBatch, ...] (torch)

Batches travel together, as what was read, at 4 bytes a token, and are expanded to 28 on the device. Each is one row of
T = b*S tokens, as attention over variable lengths takes it (Megatron-Core's PackedSeqParams, thd): document d of the row is
the tokens [cu_seqlens[d], cu_seqlens[d + 1]). A window's edge ends a document too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smol_data.shards import Window


class ContextRank(NamedTuple):
    """A rank among those that share a row's tokens (context parallelism)."""

    rank: int
    size: int

    @property
    def multiple(self) -> int:
        """Documents are padded to whole multiples of this many tokens."""
        return 2 * self.size if self.size > 1 else 1


ALONE = ContextRank(0, 1)


@dataclass(frozen=True)
class HostBatch:
    """b windows of S tokens as they were read."""

    windows: Sequence[Window]
    cu_seqlens: NDArray[np.int32]
    """[documents + 1]: document boundaries in the row, from 0 to T, strictly ascending"""
    masked: NDArray[np.int32]
    """Places in the row whose targets are left out of the loss"""
    datasets: NDArray[np.int32]
    """[b]: number of the dataset that each window is of, by TrainLoader.dataset_names"""

    def expand(self) -> "PackedBatch":
        """The packed batch on the CPU, without DALI."""
        parcel = join([self])
        [batch] = expand(torch.from_numpy(parcel.array), parcel.layout)
        return batch


@dataclass(frozen=True)
class Layout:
    """What the host knows of a parcel's array: where its parts stand, and the longest documents."""

    windows: int
    """b, of every batch"""
    length: int
    """S"""
    boundaries: list[int]
    """Of each batch: entries of cu_seqlens, documents + 1"""
    max_seqlens: list[int]
    """Of each batch: tokens of the longest document"""


@dataclass(frozen=True)
class Parcel:
    """Batches that travel together."""

    array: NDArray[np.int32]
    """Five parts. The ids, b*(S + 1) of each batch; each batch's cu_seqlens; then, counted through the rows of all batches: the
    first token of every document; the dataset of each window; the places whose targets are left out of the loss."""
    layout: Layout


@dataclass(frozen=True)
class PackedBatch:
    """What the trainer takes, on its device."""

    tokens: Tensor
    """int64 [1, T]"""
    labels: Tensor
    """int64 [1, T]: the next token of the window, also where the loss leaves it out"""
    loss_mask: Tensor
    """float32 [1, T]: 1.0 for a target that counts; 0.0 where the label is the first token of another document"""
    position_ids: Tensor
    """int64 [1, T]: from 0 in every document"""
    cu_seqlens: Tensor
    """int32 [documents + 1]: document boundaries, from 0 to T, strictly ascending"""
    max_seqlen: int
    """Tokens of the longest document, on the host: read back from a GPU, it would stop the host"""
    datasets: Tensor
    """int32 [b]: number of the dataset that each window is of, by TrainLoader.dataset_names"""


def pack(
    windows: Sequence[Window],
    document_mask: bool = True,
    stand_ins: int = 0,
    multiple: int = 1,
    datasets: Sequence[int] | None = None,
) -> HostBatch:
    """Pack windows of one length into a row.

    With `document_mask=False` a window is one document for attention and positions; the same targets stay masked, so that
    losses compare. A window's last target is the first token of the window after it and counts like any other. The last
    `stand_ins` windows only fill the row: none of their targets counts. Documents are padded to whole multiples of `multiple`
    tokens, which must divide S (`ContextRank.multiple`, `pad_documents`). `datasets` are the windows' (default: all 0).
    """
    length = len(windows[0].tokens) - 1
    edges = np.arange(len(windows) + 1, dtype=np.int32) * np.int32(length)
    if multiple > 1 and document_mask:
        windows, masks = zip(*(pad_documents(window, multiple) for window in windows), strict=True)
    else:
        masks = [window.document_ends - 1 for window in windows]
    ends, masked = (
        np.concatenate([part + edge for part, edge in zip(parts, edges, strict=False)])
        for parts in ([window.document_ends for window in windows], masks)
    )
    if stand_ins:
        masked = np.append(masked, np.arange(edges[-1 - stand_ins], edges[-1], dtype=np.int32))
    numbers = np.array(datasets or [0] * len(windows), dtype=np.int32)
    return HostBatch(windows, np.union1d(edges, ends) if document_mask else edges, masked, numbers)


def pad_documents(window: Window, multiple: int) -> tuple[Window, NDArray[np.int32]]:
    """The window with every document padded to a multiple of `multiple` tokens, and the places of targets that do not count.

    The padding is its document's tail: real tokens come before it, so they do not see it. The window keeps its length; the
    tokens that no longer fit at its end are left out, in the mean half of `multiple` for each document.
    """
    length = len(window.tokens) - 1
    tokens = np.zeros_like(window.tokens)
    ends, masked = [], []
    start = 0  # of the next document in the padded window
    for first, end in pairwise([0, *window.document_ends.tolist(), length + 1]):
        inputs = min(end - first, length - start)
        stop = start + -(-inputs // multiple) * multiple
        tokens[start : start + inputs] = window.tokens[first : first + inputs]
        if start + inputs == length:  # the window's last target
            tokens[length] = window.tokens[first + inputs]
        if inputs == end - first:  # the document ends here: its last token has no target, and the padding none
            ends.append(stop)
            masked.append(np.arange(start + inputs - 1, stop, dtype=np.int32))
        start = stop
        if start == length:
            break
    places = np.concatenate(masked) if masked else np.empty(0, dtype=np.int32)
    return Window(tokens, np.array(ends, dtype=np.int32)), places


def context_part(batch: PackedBatch, context: ContextRank) -> PackedBatch:
    """What one of R context-parallel ranks computes, [1, T / R] each: of a document's 2R chunks, `rank` and 2R - 1 - rank.

    So every rank has as much causal attention to do as any other; Transformer Engine's attention expects this cut. Document
    borders stay those of the whole row. The batch was packed with `context.multiple`.
    """
    rank, ranks = context.rank, context.size
    total = batch.tokens.shape[1] // ranks
    chunks = batch.cu_seqlens.diff() // (2 * ranks)
    starts = torch.stack([batch.cu_seqlens[:-1] + rank * chunks, batch.cu_seqlens[:-1] + (2 * ranks - 1 - rank) * chunks], 1)
    sizes = chunks.repeat_interleave(2, output_size=2 * len(chunks))
    before = sizes.cumsum(0) - sizes  # of this rank's tokens
    shifts = (starts.flatten() - before).repeat_interleave(sizes, output_size=total)
    mine = torch.arange(total, device=batch.tokens.device) + shifts
    parts = {name: getattr(batch, name)[:, mine] for name in ("tokens", "labels", "loss_mask", "position_ids")}
    return replace(batch, **parts)


def join(batches: Sequence[HostBatch]) -> Parcel:
    """One array of batches of one shape."""
    windows, length = len(batches[0].windows), len(batches[0].windows[0].tokens) - 1
    rows = np.arange(len(batches), dtype=np.int32) * np.int32(windows * length)
    parts = [
        *(window.tokens for batch in batches for window in batch.windows),
        *(batch.cu_seqlens for batch in batches),
        *(batch.cu_seqlens[:-1] + row for batch, row in zip(batches, rows, strict=True)),
        *(batch.datasets for batch in batches),
        *(batch.masked + row for batch, row in zip(batches, rows, strict=True)),
    ]
    boundaries = [len(batch.cu_seqlens) for batch in batches]
    max_seqlens = [int(np.diff(batch.cu_seqlens).max()) for batch in batches]
    return Parcel(np.concatenate(parts, dtype=np.int32, casting="unsafe"), Layout(windows, length, boundaries, max_seqlens))


def expand(array: Tensor, layout: Layout) -> list[PackedBatch]:
    """The packed batches of a parcel's array, int32 [n], on whatever device it is: all at once, then a view for each."""
    batches, total = len(layout.boundaries), layout.windows * layout.length
    ids, cu_seqlens, begins, datasets, masked = array.split(_sizes(layout, len(array)))
    rows = ids.view(batches, layout.windows, layout.length + 1)
    tokens, labels = (
        part.to(torch.int64, memory_format=torch.contiguous_format).view(batches, 1, total)
        for part in (rows[..., :-1], rows[..., 1:])
    )
    loss_mask = torch.ones(batches * total, dtype=torch.float32, device=array.device)
    loss_mask[masked.long()] = 0.0
    # Ones summed up, set back at every document's first token: no kernel here waits for another thread or for the host.
    begins = begins.long()
    position_ids = torch.ones(batches * total, dtype=torch.int64, device=array.device)
    position_ids[begins[1:]] = 1 - begins.diff()
    position_ids[0] = 0
    parts = zip(
        tokens,
        labels,
        loss_mask.view(batches, 1, total),
        position_ids.cumsum_(0).view(batches, 1, total),
        cu_seqlens.split(layout.boundaries),
        layout.max_seqlens,
        datasets.view(batches, layout.windows),
        strict=True,
    )
    return [PackedBatch(*part) for part in parts]


def _sizes(layout: Layout, size: int) -> list[int]:
    """Entries of the five parts of a parcel's array."""
    batches, boundaries = len(layout.boundaries), sum(layout.boundaries)
    ids = batches * layout.windows * (layout.length + 1)
    known = [ids, boundaries, boundaries - batches, batches * layout.windows]
    return [*known, size - sum(known)]
