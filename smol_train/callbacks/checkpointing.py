"""When a checkpoint is saved, in which form, which older ones go, and what happens when it cannot be saved.

A save that fails, or for which there is no room, ends no run: it is told, and the next one is tried when it is due. Only at
the end does it count: a run whose last step is not saved exits 85, to train the steps since its newest checkpoint again.
"""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from smol_train import checkpoint
from smol_train.callbacks.alerts import Alerts
from smol_train.callbacks.base import Callback, Metrics
from smol_train.checkpoint_folder import (
    bytes_on_disk,
    folder_name,
    free_bytes,
    note_of,
    remove_old,
    remove_partial,
    whole_checkpoints,
)
from smol_train.checkpoint_writer import Save, SaveError
from smol_train.exit_codes import REQUEUE
from smol_train.memory import checkpoint_cost
from smol_train.sections.watch import AlertEvent

if TYPE_CHECKING:
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

ROOM = 1.05
"""Free space asked for, over the size of a checkpoint: logs and metrics grow too."""


class Checkpointing(Callback):
    """Saves every so many steps or minutes, at a stage's end, on request, when a stop was requested and at the run's end."""

    def __init__(self, alerts: Alerts | None = None) -> None:
        self.alerts = alerts
        self.costs: Metrics = {}
        """Of the saves that ended since they were last taken; see SaveCosts."""
        self.saving: Save | None = None
        self.pause_seconds = 0.0
        self.last_time = 0.0
        self.bytes = 0

    def on_fit_start(self, trainer: "Trainer") -> None:
        self.last_time = time.monotonic()
        if trainer.ranks.is_main:
            self._remove_partial(trainer)
            whole = whole_checkpoints(trainer.output_dir)
            cost = checkpoint_cost(trainer.config, trainer.config.model.parameters)
            self.bytes = bytes_on_disk(whole[-1]) if whole else cost.disk_bytes

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if self.saving and self.saving.is_written():
            self._finish(trainer)
        settings, step = trainer.config.checkpoint, trainer.state.step
        if trainer.at_stage_end:
            self._save(trainer, f"end of stage {trainer.stage}", periodic=False)
        elif trainer.exit_code:
            self._save(trainer, "stop requested", periodic=False)
        elif "save" in trainer.requests:
            self._save(trainer, "save requested", periodic=False)
        elif step % settings.every_steps == 0 or self._minutes_are_up(trainer):
            self._save(trainer, "periodic", periodic=True)

    def on_rollback(self, trainer: "Trainer", rollback: "Rollback") -> None:
        self._finish(trainer)  # what is being written may be deleted now

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        trainer.saved_step, self.last_time = trainer.state.step, time.monotonic()

    def on_fit_end(self, trainer: "Trainer") -> None:
        self._finish(trainer)
        step, saved = trainer.state.step, trainer.saved_step
        if saved != step:
            trainer.exit_code = max(trainer.exit_code, REQUEUE)
            what = f"step {step} is NOT saved: started again, the run goes on from step {saved} and trains {step - saved} again"
            self._tell(trainer, "save_failed", f"{what}; exit code {trainer.exit_code}")

    def close(self) -> None:
        if self.saving:
            self.saving.abandon()

    # --- one save ------------------------------------------------------------------------------------------------------------

    def _save(self, trainer: "Trainer", reason: str, periodic: bool) -> None:
        self._finish(trainer)  # one at a time: a second would double the memory held
        started = self.last_time = time.monotonic()
        if shortage := self._shortage(trainer):
            self._tell(trainer, "disk_low", shortage)
            return
        config = trainer.config
        # See smol_train/checkpoint.py on fp32; optimizers that are not distributed have one form, which is cheap.
        cheap = periodic and config.train.precision == "bf16" and config.optim.distributed
        form: checkpoint.OptimizerForm = "dp_reshardable" if cheap else "fully_reshardable"
        try:
            self.saving = checkpoint.save(
                trainer.output_dir, config, trainer.chunks, trainer.optimizer, trainer.snapshot(reason), form
            )
        except SaveError as error:
            self._tell(trainer, "save_failed", str(error))
            return
        self.pause_seconds = time.monotonic() - started
        if not config.checkpoint.async_save:
            self._finish(trainer)

    def _finish(self, trainer: "Trainer") -> None:
        """Make the save that is under way whole, if there is one; waits for its writers."""
        if not self.saving:
            return
        started = time.monotonic()
        try:
            saved = self.saving.finish()
        except SaveError as error:
            self._tell(trainer, "save_failed", str(error))
            return
        finally:
            step, self.saving = self.saving.step, None
        self.pause_seconds += time.monotonic() - started
        trainer.saved_step, self.bytes = step, saved.bytes
        self.costs = {
            "perf/checkpoint_pause_seconds": self.pause_seconds,
            "checkpoint/write_seconds": saved.write_seconds,
            "checkpoint/bytes": float(saved.bytes),
        }
        logger.info(
            "checkpoint %s is whole: %.2f GB; training paused for %.1f s, writing took %.1f s%s",
            saved.folder,
            saved.bytes / 1e9,
            self.pause_seconds,
            saved.write_seconds,
            " in the background" if trainer.config.checkpoint.async_save else "",
        )
        if trainer.ranks.is_main:
            self._remove_partial(trainer)
            self._remove_old(trainer, saved.folder)

    def _remove_old(self, trainer: "Trainer", newest: Path) -> None:
        keep = trainer.config.checkpoint
        for folder in remove_old(trainer.output_dir, newest, keep.keep_last, keep.keep_every_steps, keep.upload is not None):
            logger.info("checkpoint %s removed: newer ones are whole", folder)

    def _minutes_are_up(self, trainer: "Trainer") -> bool:
        """By the main rank's clock, which is monotonic: a clock that is set harms nothing."""
        minutes = trainer.config.checkpoint.every_minutes
        return minutes is not None and bool(_of_main(time.monotonic() - self.last_time > 60 * minutes))

    def _shortage(self, trainer: "Trainer") -> str | None:
        """Why there is no room for another checkpoint; the same on all ranks."""
        shortage = None
        if trainer.ranks.is_main:
            # Uploads that ended since the last save: without this, a run that found no room would never have any again.
            self._remove_old(trainer, trainer.output_dir / folder_name(trainer.saved_step))
            free, needed = free_bytes(trainer.output_dir), ROOM * self.bytes
            if free < needed:
                shortage = (
                    f"checkpoint {trainer.output_dir / folder_name(trainer.state.step)} is not saved: it needs "
                    f"{needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make room"
                )
                waiting = [path for path in whole_checkpoints(trainer.output_dir) if not note_of(path)]
                if trainer.config.checkpoint.upload and waiting:
                    shortage += f", or look at the upload job: {len(waiting)} checkpoints are kept until they are uploaded"
        return _of_main(shortage)

    def _tell(self, trainer: "Trainer", event: AlertEvent, text: str) -> None:
        if trainer.ranks.is_main:
            logger.error("%s", text)
        if self.alerts:
            self.alerts.alert(event, text)

    def _remove_partial(self, trainer: "Trainer") -> None:
        for folder in remove_partial(trainer.output_dir):
            logger.info("%s removed: what a save or a removal that was ended left behind", folder)


class SaveCosts(Callback):
    """Puts what a save cost into the metrics of the step after it.

    Stands before MetricsWriter, and Checkpointing after it: a step's line must be on disk before the step is saved, or a
    run that is killed in between would go on without it.
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        self.checkpointing = checkpointing

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        metrics.update(self.checkpointing.costs)
        self.checkpointing.costs = {}


def _of_main(value: Value) -> Value:
    """The main rank's value on all ranks."""
    told = [value]
    torch.distributed.broadcast_object_list(told, src=0)
    return told[0]
