"""Windows to packed batches: tokens, labels, loss mask, positions and document boundaries.

    [Window, ...]  --pack-->  HostBatch (numpy)  --join-->  Parcel: one array  --DALI, expand-->  [PackedBatch, ...] (torch)

Batches travel together, as what was read, at 4 bytes a token, and are expanded to 28 on the device. Each is one row of
T = b*S tokens, as attention over variable lengths takes it (Megatron-Core's PackedSeqParams, thd): document d of the row is
the tokens [cu_seqlens[d], cu_seqlens[d + 1]). A window's edge ends a document too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smol_data.shards import Window


@dataclass(frozen=True)
class HostBatch:
    """b windows of S tokens as they were read."""

    windows: Sequence[Window]
    cu_seqlens: NDArray[np.int32]
    """[documents + 1]: document boundaries in the row, from 0 to T, strictly ascending"""
    masked: NDArray[np.int32]
    """Places in the row whose targets are left out of the loss"""

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
    """Four parts. The ids, b*(S + 1) of each batch; each batch's cu_seqlens; then, counted through the rows of all batches: the
    first token of every document; the places whose targets are left out of the loss."""
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


def pack(windows: Sequence[Window], document_mask: bool = True, stand_ins: int = 0) -> HostBatch:
    """Pack windows of one length into a row.

    With `document_mask=False` a window is one document for attention and positions; the same targets stay masked, so that
    losses compare. A window's last target is the first token of the window after it and counts like any other. The last
    `stand_ins` windows only fill the row: none of their targets counts.
    """
    length = len(windows[0].tokens) - 1
    edges = np.arange(len(windows) + 1, dtype=np.int32) * np.int32(length)
    ends = np.concatenate([window.document_ends + edge for window, edge in zip(windows, edges, strict=False)])
    masked = ends - 1
    if stand_ins:
        masked = np.append(masked, np.arange(edges[-1 - stand_ins], edges[-1], dtype=np.int32))
    return HostBatch(windows, np.union1d(edges, ends) if document_mask else edges, masked)


def join(batches: Sequence[HostBatch]) -> Parcel:
    """One array of batches of one shape."""
    windows, length = len(batches[0].windows), len(batches[0].windows[0].tokens) - 1
    rows = np.arange(len(batches), dtype=np.int32) * np.int32(windows * length)
    parts = [
        *(window.tokens for batch in batches for window in batch.windows),
        *(batch.cu_seqlens for batch in batches),
        *(batch.cu_seqlens[:-1] + row for batch, row in zip(batches, rows, strict=True)),
        *(batch.masked + row for batch, row in zip(batches, rows, strict=True)),
    ]
    boundaries = [len(batch.cu_seqlens) for batch in batches]
    max_seqlens = [int(np.diff(batch.cu_seqlens).max()) for batch in batches]
    return Parcel(np.concatenate(parts, dtype=np.int32, casting="unsafe"), Layout(windows, length, boundaries, max_seqlens))


def expand(array: Tensor, layout: Layout) -> list[PackedBatch]:
    """The packed batches of a parcel's array, int32 [n], on whatever device it is: all at once, then a view for each."""
    batches, total = len(layout.boundaries), layout.windows * layout.length
    ids, cu_seqlens, begins, masked = array.split(_sizes(layout, len(array)))
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
        strict=True,
    )
    return [PackedBatch(*part) for part in parts]


def _sizes(layout: Layout, size: int) -> list[int]:
    """Entries of the four parts of a parcel's array."""
    batches, boundaries = len(layout.boundaries), sum(layout.boundaries)
    ids = batches * layout.windows * (layout.length + 1)
    return [ids, boundaries, boundaries - batches, size - ids - 2 * boundaries + batches]
