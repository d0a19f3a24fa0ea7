"""Windows to a packed batch: tokens, labels, loss mask, positions and document boundaries.

    [Window, ...]  --pack-->  HostBatch (numpy: what was read)  --DALI, expand-->  PackedBatch (torch: what is trained)

A batch travels as one array of what was read, 4 bytes a token, and is expanded to 28 on the device. The result is one row of
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
class Layout:
    """What the host knows of a batch, and where its parts stand in the array that travels."""

    windows: int
    """b"""
    length: int
    """S"""
    boundaries: int
    """Entries of cu_seqlens, documents + 1"""
    masked: int
    """Targets left out of the loss"""
    max_seqlen: int
    """Tokens of the longest document"""

    @property
    def size(self) -> int:
        """Entries of the array."""
        return self.windows * (self.length + 1) + self.boundaries + self.masked


@dataclass(frozen=True)
class HostBatch:
    """b windows of S tokens as they were read."""

    array: NDArray[np.int32]
    """b*(S + 1) ids, window after window; cu_seqlens; the places in the row whose targets are left out of the loss"""
    layout: Layout

    def expand(self) -> "PackedBatch":
        """The packed batch on the CPU, without DALI."""
        return expand(torch.from_numpy(self.array), self.layout)


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
    boundaries = np.union1d(edges, ends) if document_mask else edges
    masked = ends - 1
    if stand_ins:
        masked = np.append(masked, np.arange(edges[-1 - stand_ins], edges[-1], dtype=np.int32))
    return HostBatch(
        np.concatenate([*(window.tokens for window in windows), boundaries, masked], dtype=np.int32, casting="unsafe"),
        Layout(len(windows), length, len(boundaries), len(masked), int(np.diff(boundaries).max())),
    )


def expand(array: Tensor, layout: Layout) -> PackedBatch:
    """The packed batch of a HostBatch's array, int32 [n], on whatever device it is."""
    total, ids = layout.windows * layout.length, layout.windows * (layout.length + 1)
    rows = array[:ids].view(layout.windows, layout.length + 1)
    cu_seqlens = array[ids : ids + layout.boundaries]
    loss_mask = torch.ones(1, total, dtype=torch.float32, device=array.device)
    loss_mask.view(-1)[array[ids + layout.boundaries :].long()] = 0.0
    # Ones summed up, set back at every document's first token: no kernel here waits for another thread or for the host.
    begins = cu_seqlens[:-1].long()
    position_ids = torch.ones(1, total, dtype=torch.int64, device=array.device)
    position_ids[0, begins[1:]] = 1 - begins.diff()
    position_ids[0, 0] = 0
    return PackedBatch(
        tokens=rows[:, :-1].to(torch.int64, memory_format=torch.contiguous_format).view(1, total),
        labels=rows[:, 1:].to(torch.int64, memory_format=torch.contiguous_format).view(1, total),
        loss_mask=loss_mask,
        position_ids=position_ids.cumsum_(1),
        cu_seqlens=cu_seqlens,
        max_seqlen=layout.max_seqlen,
    )
