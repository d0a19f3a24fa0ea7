"""Windows to a packed batch: tokens, labels, loss mask, positions and document boundaries. Pure numpy.

    [Window, Window, ...]  --pack-->  one row of b*S tokens, its documents marked by cu_seqlens  --> loader, trainer

The row is what attention over variable lengths takes (Megatron-Core's PackedSeqParams, thd): document d of the row is the
tokens [cu_seqlens[d], cu_seqlens[d + 1]). A window's edge ends a document too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from smol_data.shards import Window

Array = TypeVar("Array")
"""numpy.ndarray as `pack` makes it, torch.Tensor as the loader hands it out."""


@dataclass(frozen=True)
class PackedBatch(Generic[Array]):
    """b windows of S tokens in one row, T = b*S."""

    tokens: Array
    """int64 [1, T]"""
    labels: Array
    """int64 [1, T]: the next token of the window, also where the loss leaves it out"""
    loss_mask: Array
    """float32 [1, T]: 1.0 for a target that counts; 0.0 where the label is the first token of another document"""
    position_ids: Array
    """int64 [1, T]: from 0 in every document"""
    cu_seqlens: Array
    """int32 [documents + 1]: document boundaries, from 0 to T, strictly ascending"""
    max_seqlen: int
    """Tokens of the longest document, on the host"""


def pack(windows: Sequence[Window], document_mask: bool = True) -> PackedBatch[NDArray]:
    """Pack windows of one length into a row.

    With `document_mask=False` a window is one document for attention and positions; the same targets stay masked, so that
    losses compare. A window's last target is the first token of the window after it and counts like any other.
    """
    rows = np.stack([window.tokens for window in windows])
    length = rows.shape[1] - 1
    edges = np.arange(len(windows) + 1) * length
    ends = np.concatenate([window.document_ends + edge for window, edge in zip(windows, edges[:-1], strict=True)])

    loss_mask = np.ones(rows.shape[0] * length, dtype=np.float32)
    loss_mask[ends - 1] = 0.0

    boundaries = np.unique(np.concatenate([edges, ends])) if document_mask else edges
    lengths = np.diff(boundaries)
    positions = np.arange(boundaries[-1]) - np.repeat(boundaries[:-1], lengths)
    return PackedBatch(
        tokens=rows[:, :-1].reshape(1, -1),
        labels=rows[:, 1:].reshape(1, -1),
        loss_mask=loss_mask[None],
        position_ids=positions[None],
        cu_seqlens=boundaries.astype(np.int32),
        max_seqlen=int(lengths.max()),
    )
