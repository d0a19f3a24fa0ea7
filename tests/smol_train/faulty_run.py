"""pretrain_smol.py with faults built in, each once a run: what happens to a rank of a run that is left alone.

    RANK=0 WORLD_SIZE=2 ... python faulty_run.py FAULTS_FOLDER --config C.yaml [section.key=value ...]

    after step 50     rank 1 is killed (SIGKILL)
    after step 90     rank 1 computes a NaN, and a number when it computes again
    samples 960-999   lose a hundredfold (five steps): a spike that persists

A file in FAULTS_FOLDER says that a fault has been; `steps.jsonl` there, what rank 0 trained on.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import pretrain_smol
from smol_data.schedule import batch_at
from smol_train import step
from smol_train import trainer as trainer_module
from smol_train.callbacks.base import Callback, Metrics

KILLED_AFTER, NAN_AFTER = 50, 90
SPIKE = (960, 1000)


class Faults(Callback):
    """First in the list: knows the step before it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.factor = 1.0

    def on_step_start(self, trainer: Any) -> None:
        first, size, _ = batch_at(trainer.segments, trainer.state.step)
        rank, done = trainer.ranks.rank, trainer.state.step
        self.factor = 100.0 if first < SPIKE[1] and SPIKE[0] < first + size else 1.0
        if rank == 1 and done == KILLED_AFTER and self._once("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and done == NAN_AFTER and self._once("nan"):
            self.factor = math.nan

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        if trainer.ranks.is_main:
            first, size, _ = batch_at(trainer.segments, trainer.state.step - 1)
            line = {"step": trainer.state.step, "samples": [first, first + size], "updated": trainer.verdict.update}
            with (self.folder / "steps.jsonl").open("a") as file:
                file.write(json.dumps({**line, "loss": metrics["train/loss"]}) + "\n")

    def _once(self, name: str) -> bool:
        path = self.folder / name
        if path.exists():
            return False
        path.touch()
        return True

    def masked_sum(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            *others, losses = arguments
            losses = losses * self.factor
            if math.isnan(self.factor):
                self.factor = 1.0
            return original(*others, losses)

        return faulty


def main() -> int:
    faults = Faults(Path(sys.argv[1]))
    step.masked_sum = faults.masked_sum(step.masked_sum)
    plain = trainer_module.Trainer

    def with_faults(config: Any, ranks: Any, callbacks: list[Callback]) -> Any:
        return plain(config, ranks, [faults, *callbacks])

    trainer_module.Trainer = with_faults  # type: ignore[assignment,misc]
    return pretrain_smol.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
