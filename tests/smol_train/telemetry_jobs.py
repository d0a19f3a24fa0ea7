"""Jobs of the pool for what is told about a run: its weights' norms, and ranks that are slow on purpose."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig


class SlowRank(Callback):
    """Makes this rank's data or its forward passes slow in some steps: each micro-batch by a multiple of the longest step."""

    def __init__(self, slow_steps: dict[str, range], factor: float) -> None:
        self.slow_steps, self.factor = slow_steps, factor
        self.longest = self.sleep = 0.0
        self.step = 0

    def on_fit_start(self, trainer: Any) -> None:
        from smol_train import trainer as module

        batches, forward = trainer.batches.inner, module.forward_step

        def slow_batches() -> Any:
            for batch in batches:
                self._wait("data")
                yield batch

        def slow_forward(*arguments: Any) -> Any:
            self._wait("compute")
            return forward(*arguments)

        trainer.batches.inner, module.forward_step, self.restore = slow_batches(), slow_forward, (module, forward)

    def on_step_start(self, trainer: Any) -> None:
        self.step = trainer.state.step + 1

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        if self.step > 1 and not any(self.step in steps for steps in self.slow_steps.values()):
            self.longest = max(self.longest, metrics["perf/step_seconds"])

    def close(self) -> None:
        module, module.forward_step = self.restore

    def _wait(self, where: str) -> None:
        if self.step in self.slow_steps[where]:
            time.sleep(self.factor * self.longest)


def train_with_a_slow_rank(overrides: Sequence[str], run: Path, rank: int, data: range, compute: range) -> list[Metrics]:
    """The reports of this rank; `rank` is slow in its data in some steps and in its forward passes in others."""
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.devices import DeviceMetrics
    from smol_train.callbacks.rank_report import RankReport
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    class Reports(Callback):
        def __init__(self) -> None:
            self.reports: list[Metrics] = []

        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            if "ranks/slowest" in metrics:
                self.reports.append({"step": trainer.state.step, **metrics})

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        alerts, devices, reports = Alerts(config.alerts, run, ranks.is_main), DeviceMetrics(), Reports()
        slow = [SlowRank({"data": data, "compute": compute}, factor=2.0)] if ranks.rank == rank else []
        Trainer(config, ranks, [*slow, devices, RankReport(config.logging, alerts, devices), reports]).fit()
        return reports.reports


def norms_by_hand(overrides: Sequence[str]) -> tuple[dict[str, float], float]:
    """(norms by group, norm of all weights) of the initial weights; on one rank."""
    from smol_train.callbacks.parameter_norms import group_norms
    from smol_train.model import build_chunks, unwrap
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        chunks = build_chunks(config)
        weights = [parameter.detach().double() for parameter in unwrap(chunks[0]).parameters()]
        return group_norms(chunks), float(sum((weight**2).sum() for weight in weights)) ** 0.5


def train_as_the_command_does(overrides: Sequence[str]) -> int:
    """With all callbacks, in this process; returns the exit code."""
    import pretrain_smol

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return pretrain_smol.main(["--config", str(QUICKSTART), *overrides])
