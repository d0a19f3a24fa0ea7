"""When a checkpoint is saved, in which form, and which older ones go."""

import logging
import time
from typing import TYPE_CHECKING

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from smol_train import checkpoint
from smol_train.callbacks.base import Callback, Metrics
from smol_train.checkpoint_folder import MARKER, folder_name, remove_old

if TYPE_CHECKING:
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Saves every so many steps or minutes, at a stage's end, on request, when a stop was requested and at the run's end."""

    def __init__(self) -> None:
        # A forked writer sees memory as it was at the fork: later steps cannot tear a save. (Megatron-Core's persistent
        # writer is a spawned process, which on a host without CUDA shares the tensors it is writing.)
        self.queue = AsyncCallsQueue(persistent=False)
        self.last_step = 0
        self.last_time = 0.0

    def on_fit_start(self, trainer: "Trainer") -> None:
        self.last_step, self.last_time = trainer.state.step, time.monotonic()

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        started = time.perf_counter()
        if self.queue.maybe_finalize_async_calls():
            self._remove_old(trainer)
        settings, step = trainer.config.checkpoint, trainer.state.step
        if trainer.at_stage_end:
            self._save(trainer, f"end of stage {trainer.stage}", periodic=False)
        elif trainer.exit_code:
            self._save(trainer, "stop requested", periodic=False)
        elif "save" in trainer.requests:
            self._save(trainer, "save requested", periodic=False)
        elif step % settings.every_steps == 0 or self._minutes_are_up(trainer):
            self._save(trainer, "periodic", periodic=True)
        if self.last_step == step:
            metrics["perf/checkpoint_pause_seconds"] = time.perf_counter() - started

    def on_rollback(self, trainer: "Trainer", rollback: "Rollback") -> None:
        self.queue.maybe_finalize_async_calls(blocking=True)  # what is being written may be deleted now

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        self.last_step, self.last_time = trainer.state.step, time.monotonic()

    def on_fit_end(self, trainer: "Trainer") -> None:
        self.queue.maybe_finalize_async_calls(blocking=True)
        self._remove_old(trainer)

    def _save(self, trainer: "Trainer", reason: str, periodic: bool) -> None:
        config = trainer.config
        # See smol_train/checkpoint.py on fp32; optimizers that are not distributed have one form, which is cheap.
        cheap = periodic and config.train.precision == "bf16" and config.optim.distributed
        self.queue.maybe_finalize_async_calls(blocking=True)  # one at a time: a second would double the memory held
        folder = checkpoint.save(
            trainer.output_dir,
            config,
            trainer.chunks,
            trainer.optimizer,
            trainer.snapshot(reason),
            "dp_reshardable" if cheap else "fully_reshardable",
            self.queue.schedule_async_request if config.checkpoint.async_save else None,
        )
        self.last_step, self.last_time = trainer.state.step, time.monotonic()
        logger.info(
            "checkpoint %s: %s%s", folder, reason, ", written in the background" if config.checkpoint.async_save else ""
        )
        if not config.checkpoint.async_save:
            self._remove_old(trainer)

    def _minutes_are_up(self, trainer: "Trainer") -> bool:
        """By the main rank's clock, told to all."""
        minutes = trainer.config.checkpoint.every_minutes
        if minutes is None:
            return False
        up = torch.tensor([time.monotonic() - self.last_time > 60 * minutes], dtype=torch.int, device=trainer.ranks.device)
        torch.distributed.broadcast(up, src=0)
        return bool(up)

    def _remove_old(self, trainer: "Trainer") -> None:
        settings = trainer.config.checkpoint
        if trainer.ranks.is_main:
            newest = trainer.output_dir / folder_name(self.last_step)
            if not (newest / MARKER).exists():
                return
            for folder in remove_old(trainer.output_dir, newest, settings.keep_last, settings.keep_every_steps):
                logger.info("checkpoint %s removed: newer ones are whole", folder)
