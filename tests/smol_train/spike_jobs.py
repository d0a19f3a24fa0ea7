"""Jobs for ranks: real training in which the losses of some samples are poisoned, as bad documents would."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jobs import Recorder, weight_digests
from tiny_runs import QUICKSTART

from smol_config import load
from smol_data.schedule import SampleRange, batch_at
from smol_train import step, trainer
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig


class Watch(Callback):
    """Keeps what each step trained on and what became of it, and poisons steps that touch `poisoned` samples."""

    def __init__(self, poisoned: SampleRange, factor: float) -> None:
        self.poisoned, self.factor = poisoned, factor
        self.active = False
        self.steps: list[dict[str, Any]] = []
        self.before: dict[str, str] = {}

    def on_step_start(self, trainer: Any) -> None:
        first, size, _ = batch_at(trainer.segments, trainer.state.step)
        self.active = first < self.poisoned[1] and self.poisoned[0] < first + size
        self.before = weight_digests(trainer)

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        first, size, _ = batch_at(trainer.segments, trainer.state.step - 1)
        self.steps.append(
            {
                "step": trainer.state.step,
                "samples": (first, first + size),
                "updated": trainer.verdict.update,
                "reason": trainer.verdict.reason,
                "moved": weight_digests(trainer) != self.before,
                "clip": trainer._clip(),
                "loss": metrics["train/loss"],
            }
        )

    def masked_sum(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def poisoned(*arguments: Any) -> Any:
            *others, losses = arguments
            return original(*others, losses * self.factor if self.active else losses)

        return poisoned


def train_with_poison(
    overrides: Sequence[str], poisoned: SampleRange, factor: float = 50.0, die_in_rollback: bool = False
) -> dict[str, Any]:
    """A run as pretrain_smol.py has it; `die_in_rollback` ends the process's part right after the decision is on disk."""
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.callbacks.spikes import SpikeReports
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    watch, recorder = Watch(poisoned, factor), Recorder()
    masked_sum, gathered = step.masked_sum, trainer.gathered_parameters
    step.masked_sum = watch.masked_sum(masked_sum)
    if die_in_rollback:
        trainer.gathered_parameters = _die
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            alerts = Alerts(config.alerts, Path(config.train.output_dir), ranks.is_main)
            callbacks = [alerts, watch, SpikeReports(alerts), MetricsWriter(), recorder, Checkpointing()]
            run = trainer.Trainer(config, ranks, callbacks)
            start = run.state.step
            try:
                code = run.fit()
            except Death:
                return {"died_at": run.state.step}
            weights = weight_digests(run)
            return {"code": code, "start": start, "steps": watch.steps, "weights": weights, "skips": run.state.skips}
    finally:
        step.masked_sum, trainer.gathered_parameters = masked_sum, gathered


class Death(BaseException):
    """Stands for the process's end."""


def _die(model: Any) -> Any:
    raise Death


class Fault(Callback):
    """Makes numbers none on one rank after `step` steps: once, as a device that errs, or whenever it is computed."""

    def __init__(self, rank: int, step: int, where: str, times: int) -> None:
        self.rank, self.step, self.where, self.left = rank, step, where, times
        self.active = False

    def on_step_start(self, trainer: Any) -> None:
        self.active = trainer.ranks.rank == self.rank and trainer.state.step == self.step

    def masked_sum(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            *others, losses = arguments
            if self.active and self.left:
                self.left -= 1
                losses = losses * math.nan if self.where == "loss" else _NoNumberBackward.apply(losses)
            return original(*others, losses)

        return faulty


class _NoNumberBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, losses: torch.Tensor) -> torch.Tensor:
        return losses.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * math.nan


def train_with_fault(overrides: Sequence[str], rank: int, at_step: int, where: str, times: int) -> dict[str, Any]:
    """A run as pretrain_smol.py has it, with a Fault."""
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.spikes import SpikeReports
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    watch, fault, masked_sum = Watch((0, 0), 1.0), Fault(rank, at_step, where, times), step.masked_sum
    step.masked_sum = fault.masked_sum(masked_sum)
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            alerts = Alerts(config.alerts, Path(config.train.output_dir), ranks.is_main)
            run = trainer.Trainer(config, ranks, [alerts, fault, watch, SpikeReports(alerts), Checkpointing()])
            start = run.state.step
            return {"code": run.fit(), "start": start, "steps": watch.steps, "weights": weight_digests(run)}
    finally:
        step.masked_sum = masked_sum
