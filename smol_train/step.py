"""What one micro-batch does: forward over packed documents, and the sums of the unmasked losses, also by dataset."""

import functools
from collections.abc import Callable, Iterator, Sequence
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
    return output, functools.partial(masked_sum, batch.loss_mask, batch.datasets)


def masked_sum(loss_mask: Tensor, datasets: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(sum of the unmasked losses, their number, both of each window for the report).

    The schedule adds sums and numbers over micro-batches and ranks and divides once: the mean over the targets of the
    whole global batch, whatever the micro-batch size or the layout.
    """
    windows = len(datasets)  # a row is b windows of equal length, also what a context-parallel rank has of it
    totals = (losses.float() * loss_mask).view(windows, -1).sum(1)
    counts = loss_mask.view(windows, -1).sum(1)
    report = {"loss_and_targets": torch.stack([totals.detach(), counts], dim=1), "datasets": datasets}
    # The schedule wants an integer count: it goes through an integer buffer.
    return totals.sum(), counts.sum().to(torch.int), report


def sums_by_dataset(reports: Sequence[dict[str, Tensor]], datasets: int) -> Tensor:
    """float64 [datasets, 2]: loss sum and targets of each dataset over a rank's micro-batches."""
    windows = torch.cat([report["loss_and_targets"] for report in reports]).double()
    numbers = torch.cat([report["datasets"] for report in reports])
    members = numbers == torch.arange(datasets, device=numbers.device)[:, None]
    # Chosen, not multiplied by 0 and 1: the NaN of one dataset stays its own.
    return torch.where(members[:, :, None], windows, 0.0).sum(1)
