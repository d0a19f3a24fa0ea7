"""Loss on the held-out sets, every so many steps and at the end, as `eval/loss/NAME` beside the step's other metrics."""

from typing import TYPE_CHECKING

import torch

from smol_data.loader import HeldOutLoader
from smol_train.callbacks.base import Callback, Metrics
from smol_train.model import gathered_parameters

if TYPE_CHECKING:
    from smol_train.trainer import Trainer


class HeldOutEvaluation(Callback):
    """Mean loss per target over the first windows of each held-out set; the same windows every time."""

    def __init__(self) -> None:
        self.loaders: dict[str, HeldOutLoader] = {}

    def on_fit_start(self, trainer: "Trainer") -> None:
        config, ranks = trainer.config, trainer.ranks
        for name in config.data.held_out:
            self.loaders[name] = HeldOutLoader(
                config.data,
                name,
                windows=config.evaluation.windows,
                micro_batch_size=config.train.micro_batch_size,
                rank=ranks.data_parallel_rank,
                world_size=ranks.data_parallel_size,
                device=ranks.device,
                vocab_size=config.model.vocab_size,
                context=ranks.context,
                group=config.parallel.micro_batch_group,
            )

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        every, step = trainer.config.evaluation.every_steps, trainer.state.step
        if step == trainer.total_steps or (every and step % every == 0):
            for name, loader in self.loaders.items():
                metrics[f"eval/loss/{name}"] = self._loss(trainer, loader)

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()

    @torch.no_grad()
    def _loss(self, trainer: "Trainer", loader: HeldOutLoader) -> float:
        for chunk in trainer.chunks:
            chunk.eval()
        with gathered_parameters(trainer.chunks):
            reports = trainer.forward_backward(iter(loader), len(loader), forward_only=True)
        [(total, targets)], _ = trainer.sum_over_ranks(reports)
        return total / targets
