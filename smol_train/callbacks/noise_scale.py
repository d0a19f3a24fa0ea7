"""Gradient-noise scale as `train/gradient_noise_scale`, in tokens: about the batch up to which more data parallelism pays.

With per-token gradients of mean G and covariance Sigma, a batch of B tokens has E|G_B|^2 = |G|^2 + tr(Sigma) / B, so the norms
of two batch sizes give both unknowns (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1):

    |G|^2      estimated by  (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma)  estimated by  (|G_b|^2 - |G_B|^2) / (1/b - 1/B)            B_simple = tr(Sigma) / |G|^2

Both estimates are unbiased, each is averaged over measurements, and only then divided. The large batch is the step's own,
whose norm is known. The small one is the first micro-batch of data-parallel rank 0: a pass before the step in which the targets
of all other ranks are masked, through the same schedule and reductions, so that the norm is right under any layout. A
measurement costs one micro-batch's forward and backward pass, one reduction of the gradients and a norm; the step that follows
takes the same batch again, and its result does not change by a bit.

What counts as a sample is a target of the loss. Tokens of a window are not independent, and their common part is noise like any
other: the figure still says how many tokens a batch needs. The averages live in memory and start anew when a run is resumed.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from smol_data.schedule import batch_at
from smol_train.callbacks.base import Callback, Metrics
from smol_train.optim import gradient_norm

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

MEMORY = 0.9
"""Weight of the measurements before in the running averages: they reach back about 10 measurements."""


class Measured(NamedTuple):
    """The gradient of a batch."""

    targets: float
    squared_norm: float


def estimates(small: Measured, large: Measured) -> tuple[float, float]:
    """(tr(Sigma) per target, |G|^2) from two batch sizes; unbiased, and negative where noise has it so."""
    noise = (small.squared_norm - large.squared_norm) / (1 / small.targets - 1 / large.targets)
    signal = (large.targets * large.squared_norm - small.targets * small.squared_norm) / (large.targets - small.targets)
    return noise, signal


class GradientNoiseScale(Callback):
    """Measures every `logging.noise_scale_every_steps`; stands before what writes metrics."""

    def __init__(self) -> None:
        self.small: Measured | None = None
        self.large: Measured | None = None
        """The last measurement."""
        self.noise = self.signal = 0.0
        """Running averages; both begin at 0, which their ratio does not see."""

    def on_step_start(self, trainer: "Trainer") -> None:
        every, step = trainer.config.logging.noise_scale_every_steps, trainer.state.step
        due = every is not None and (step + 1) % every == 0
        alone = batch_at(trainer.segments, step).batch_size == trainer.config.train.micro_batch_size
        self.small = _first_micro_batch(trainer) if due and not alone else None

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Adds the metric; left out while the averages are not both above 0, which happens where the signal is tiny."""
        if self.small is None:
            return
        self.large = Measured(metrics["train/targets"], metrics["train/grad_norm"] ** 2)
        noise, signal = estimates(self.small, self.large)
        if not math.isfinite(noise + signal):  # a norm that is not finite would stay in the averages for ever
            return
        self.noise = MEMORY * self.noise + (1 - MEMORY) * noise
        self.signal = MEMORY * self.signal + (1 - MEMORY) * signal
        if self.noise > 0 and self.signal > 0:
            metrics["train/gradient_noise_scale"] = self.noise / self.signal


def _first_micro_batch(trainer: "Trainer") -> Measured:
    """The gradient of the coming step's first micro-batch on data-parallel rank 0; the data stays where it is."""
    [batch] = trainer.batches.peek(1)
    masked = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    if trainer.ranks.data_parallel_rank != 0:
        batch = masked
    batches = [batch, *[masked] * (trainer.config.parallel.micro_batch_group - 1)]
    trainer.clear_gradients()
    trainer.forward_backward(iter(batches), len(batches), forward_only=False)
    return Measured(_targets(trainer, batch.loss_mask), gradient_norm(trainer.optimizer) ** 2)


def _targets(trainer: "Trainer", mask: torch.Tensor) -> float:
    """Sum of a mask over all ranks; tensor-parallel ranks and pipeline stages repeat each other's."""
    total = mask.sum(dtype=torch.float64)
    torch.distributed.all_reduce(total)
    parallel = trainer.config.parallel
    return float(total) / (parallel.tensor * parallel.pipeline)
