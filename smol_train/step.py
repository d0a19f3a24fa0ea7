"""What one micro-batch does: forward over packed documents, and the sum of the unmasked losses."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from smol_data.batch import PackedBatch

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


def packed_sequence(batch: PackedBatch) -> PackedSeqParams:
    """The document borders of a row as Megatron-Core and Transformer Engine take them (thd: tokens, heads, head_dim)."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


def forward_step(batches: Iterator[PackedBatch], model: Any) -> tuple[Tensor, LossFunction]:
    """One forward pass for Megatron-Core's schedules: losses [1, t] on the last stage, hidden states on the others."""
    batch = next(batches)
    output = model(batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=packed_sequence(batch))
    return output, functools.partial(masked_sum, batch.loss_mask)


def masked_sum(loss_mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(sum of the unmasked losses, their number, both for the report).

    The schedule adds sums and numbers over micro-batches and ranks and divides once: the mean over the targets of the
    whole global batch, whatever the micro-batch size or the layout.
    """
    total = (losses.float() * loss_mask).sum()
    count = loss_mask.sum()
    # The schedule wants an integer count: it goes through an integer buffer.
    return total, count.to(torch.int), {"loss_and_targets": torch.stack([total.detach(), count])}
