"""The metrics to an experiment tracker, trackio or wandb, where `logging.tracker` names one; both take the same three calls.

Each start of a run, from step 0, resumed or rolled back, is a run of its own in the tracker, in one group: steps that are
trained again would otherwise be refused (wandb) or stand there twice (trackio). A tracker that fails is told once and does not
end the run.
"""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from smol_config import ConfigError
from smol_train.callbacks.base import Callback, Metrics
from smol_train.callbacks.metrics import is_written
from smol_train.sections.watch import LoggingConfig

if TYPE_CHECKING:
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)


class Tracker(Callback):
    """After MetricsWriter, with which it shares what is written when; active on the main rank. Raises ConfigError on all ranks
    for a tracker that is not installed."""

    def __init__(self, config: LoggingConfig) -> None:
        self.name, self.project = config.tracker, config.tracker_project
        self.module: Any = None
        if self.name != "none" and importlib.util.find_spec(self.name) is None:
            raise ConfigError(
                f"logging.tracker={self.name}, but the package {self.name} is not installed; pip install {self.name}, or set "
                f"logging.tracker to none"
            )

    def on_fit_start(self, trainer: "Trainer") -> None:
        if self.name != "none" and trainer.ranks.is_main:
            self.module = importlib.import_module(self.name)
            self._begin(trainer)

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        if self.module:
            self._call("finish")
            self._begin(trainer)

    def _begin(self, trainer: "Trainer") -> None:
        run, step = trainer.output_dir.name, trainer.state.step
        settings = trainer.config.model_dump(mode="json", exclude_none=True)
        self._call("init", project=self.project, group=run, name=f"{run}-{step:07d}", config=settings)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if self.module and is_written(trainer, metrics):
            self._call("log", {**metrics, "tokens": trainer.state.tokens}, step=trainer.state.step)

    def close(self) -> None:
        self._call("finish")

    def _call(self, function: str, *arguments: Any, **named: Any) -> None:
        if not self.module:
            return
        try:
            getattr(self.module, function)(*arguments, **named)
        except Exception as error:  # whatever a service of others does: a run does not end for it
            logger.warning("%s failed (%s: %s); this run goes on without it", self.name, type(error).__name__, error)
            self.module = None
