"""Records a window of steps with torch's profiler: by configuration, or when RUN/profile asks for one.

    RUN/profiles/step_0000100_rank_0.json.gz    the trace, for chrome://tracing or ui.perfetto.dev
    RUN/profiles/step_0000100_rank_0.txt        the operators that took longest
    RUN/profiles/step_0000100_rank_0.pickle     GPU memory by allocation, for pytorch.org/memory_viz (profiling.memory)

The window goes from the end of one step to the end of another, so what happens between its steps is in it.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from smol_config import ConfigError
from smol_train.callbacks.base import Callback, Metrics
from smol_train.parallel import Ranks
from smol_train.sections.watch import ProfilingConfig

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

REQUESTED_STEPS = 5
ROWS = 40
ALLOCATIONS = 100_000
"""Allocations kept in a memory snapshot: the last ones, since each is kept with its stack."""


class Profiling(Callback):
    """Last in the list: a window begins and ends when the others are done. Raises ConfigError for ranks that do not exist."""

    def __init__(self, config: ProfilingConfig, ranks: Ranks) -> None:
        if unknown := [rank for rank in config.ranks if rank >= ranks.world_size]:
            raise ConfigError(
                f"profiling.ranks={unknown} do not exist among {ranks.world_size}; use 0 to {ranks.world_size - 1}"
            )
        self.steps, self.rank, self.device = config.steps, ranks.rank, ranks.device
        self.records = ranks.rank in config.ranks
        self.memory = config.memory and ranks.device.type == "cuda"
        self.profiler: profile | None = None
        self.first = self.end = 0

    def on_fit_start(self, trainer: "Trainer") -> None:
        self._begin_configured(trainer)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if self.profiler and trainer.state.step >= self.end:
            self._write(trainer.output_dir)
        if not self.profiler and "profile" in trainer.requests:
            self._begin(trainer.state.step, trainer.state.step + REQUESTED_STEPS)
        self._begin_configured(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self.profiler and trainer.state.step > self.first:
            self._write(trainer.output_dir)

    def close(self) -> None:
        if self.profiler:
            self._stop()

    def _begin_configured(self, trainer: "Trainer") -> None:
        """A run that was resumed inside the window records what is left of it."""
        if self.steps and not self.profiler and self.steps[0] <= trainer.state.step < self.steps[1]:
            self._begin(trainer.state.step, self.steps[1])

    def _begin(self, first: int, end: int) -> None:
        if not self.records:
            return
        self.first, self.end = first, end
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        self.profiler = profile(activities=activities, record_shapes=True)
        self.profiler.start()
        if self.memory:
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)

    def _stop(self) -> None:
        assert self.profiler
        self.profiler.stop()
        self.profiler = None
        if self.memory:
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, run: Path) -> None:
        """A full disk costs the profile, not the run."""
        stem = run / "profiles" / f"step_{self.first:07d}_rank_{self.rank}"
        profiler = self.profiler
        assert profiler
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            if self.memory:
                torch.cuda.memory._dump_snapshot(f"{stem}.pickle")
            self._stop()
            profiler.export_chrome_trace(f"{stem}.json.gz")
            device = "cuda" if self.device.type == "cuda" else "cpu"
            table = profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
            Path(f"{stem}.txt").write_text(table + "\n", encoding="utf8")
            logger.info("profile of steps %d to %d: %s.json.gz", self.first + 1, self.end, stem)
        except (OSError, RuntimeError) as error:
            logger.warning("profile %s cannot be written: %s", stem, error)
        finally:
            self.close()
