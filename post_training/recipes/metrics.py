"""Every scalar to RUN/metrics.jsonl and TensorBoard, with step, tokens and time, under the names that pre-training has.

    {"step": 10, "tokens": 8192, "time": "...", "train/loss": 1.9, "train/grad_norm": 0.4, "perf/tokens_per_second": 512.0, ...}

A line is one logged step, evaluation included; steps that are trained again after a resume replace those of the lost attempt,
which go to metrics_lost.jsonl. Tokens are those of the model's input, prompts and both answers of a pair too, without padding.
"""

import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from smol_files import keep_until

METRICS = "metrics.jsonl"
_NAMES = {"mean_token_accuracy": "token_accuracy", "frac_reward_zero_std": "rewards/equal_groups"}
"""Where TRL's name for something is not ours."""
_LEFT_OUT = ("epoch", "num_tokens", "runtime", "samples_per_second", "steps_per_second", "step_time")


class Metrics(TrainerCallback):
    """Writes on the main rank; `trainer` counts the tokens."""

    def __init__(self, run: Path, trainer: Any) -> None:
        self.run, self.trainer = run, trainer
        self._line: dict[str, Any] = {}
        self._board: Any = None
        self._last = (0.0, 0)
        """Time and tokens of the latest line."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = (time.monotonic(), self.trainer._total_train_tokens)
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            keep_until(self.run / METRICS, state.global_step)
            self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Collect what belongs to a step: training's log, then evaluation's."""
        logs: dict[str, float] = given["logs"]
        found = {named: value for name, value in logs.items() if (named := _named(name)) and isinstance(value, int | float)}
        if "loss" in logs:
            now, tokens = time.monotonic(), self.trainer._total_train_tokens
            rate = (tokens - self._last[1]) / max(now - self._last[0], 1e-9)
            found |= {"perf/tokens_per_second": rate, "perf/tokens_per_second_per_device": rate / args.world_size}
            self._last = (now, tokens)
        elif not any(name.startswith("eval/") for name in found):  # the trainer's own summary at the end
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        start = {"step": state.global_step, "tokens": self.trainer._total_train_tokens, "time": at}
        self._line = start | self._line | found

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state)
        if self._board:
            self._board.close()

    def _write(self, state: Any) -> None:
        line, self._line = self._line, {}
        if not line or not state.is_world_process_zero:
            return
        lost = {name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
        with (self.run / METRICS).open("a", encoding="utf8") as file:  # JSON has no NaN
            file.write(json.dumps({name: None if name in lost else value for name, value in line.items()}) + "\n")
        for name, value in line.items():
            if "/" in name:
                self._board.add_scalar(name, value, line["step"])
        self._board.flush()


def _named(name: str) -> str | None:
    """Our name for one of the trainer's scalars; None for what is not written."""
    group, own = ("eval", name.removeprefix("eval_")) if name.startswith("eval_") else ("train", name)
    return None if own in _LEFT_OUT else f"{group}/{_NAMES.get(own, own)}"
