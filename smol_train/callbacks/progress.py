"""What a person sees: a progress bar on a terminal, plain lines with the same figures elsewhere."""

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from tqdm import tqdm

from smol_train.callbacks.base import Callback, Metrics

if TYPE_CHECKING:
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

SECONDS_BETWEEN_LINES = 10.0


class Progress(Callback):
    """Loss, tokens per second and time left, on the main rank."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.started = self.last_line = 0.0
        self.first_step = 0

    def on_fit_start(self, trainer: "Trainer") -> None:
        if not trainer.ranks.is_main:
            return
        self.started = self.last_line = time.monotonic()
        self.first_step = trainer.state.step
        if sys.stderr.isatty():
            self.bar = tqdm(total=trainer.total_steps, initial=trainer.state.step, unit="step", dynamic_ncols=True)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if not trainer.ranks.is_main:
            return
        step, total = trainer.state.step, trainer.total_steps
        figures = f"loss {metrics['train/loss']:.3f}  {metrics['perf/tokens_per_second']:,.0f} tokens/s"
        held_out = "  ".join(f"{n.removeprefix('eval/')} {v:.3f}" for n, v in metrics.items() if n.startswith("eval/"))
        if self.bar is not None:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update()
            if held_out:
                self.bar.write(f"step {step}/{total}  held-out: {held_out}")
            return
        now = time.monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES and step != total and step != self.first_step + 1 and not held_out:
            return
        self.last_line = now
        left = (now - self.started) / (step - self.first_step) * (total - step)
        line = f"step {step}/{total}  {trainer.stage}  {figures}  {timedelta(seconds=round(left))} left"
        print(f"{line}  held-out: {held_out}" if held_out else line, flush=True)

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        self.started, self.first_step = time.monotonic(), trainer.state.step
        if self.bar is not None:
            self.bar.n = trainer.state.step
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
