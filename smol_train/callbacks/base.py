"""The whole contract between the training loop and everything around it.

The trainer calls each hook on every rank, callback by callback in list order. A hook may read the trainer, add to
`metrics`, and call `trainer.request_stop`; it must not raise for what it can log, and collectives inside it must be
reached by all ranks.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smol_train.rerun import SuspectedDevice
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

Metrics = dict[str, float]
"""Scalars of one step by the name under which they are written, such as `train/loss`."""


class Callback:
    """Does nothing; override what a concern needs."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first step of this process; `trainer.state` is where it starts."""

    def on_step_start(self, trainer: "Trainer") -> None:
        """Before each step, when all that followed the one before is done."""

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """After each optimizer step; `trainer.state` counts it already."""

    def on_rollback(self, trainer: "Trainer", rollback: "Rollback") -> None:
        """After the `on_step_end` of a step that ends in a rollback, before anything changes: finish what is in flight."""

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        """When the trainer has gone back: `trainer.state` is that of the earlier checkpoint."""

    def on_suspected_device(self, trainer: "Trainer", suspected: "SuspectedDevice") -> None:
        """In place of `on_step_end`, when the step was left because a device may have erred; `on_fit_end` follows."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step, also when a stop was requested; not after an exception."""

    def close(self) -> None:
        """Always, last: free files and processes. No collectives: other ranks may be gone."""
