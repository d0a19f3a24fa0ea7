"""Every scalar to metrics.jsonl and TensorBoard, under the same name, with step, tokens and time. Nothing is scraped from logs.

A disk that is full or read-only ends no run: lines wait until they can be written, TensorBoard misses those steps.
"""

import contextlib
import json
import logging
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from smol_files import keep_until
from smol_train.callbacks.base import Callback, Metrics
from smol_train.tensorboard_layout import LAYOUT

if TYPE_CHECKING:
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"

OCCASIONAL = ("eval/", "checkpoint/", "ranks/", "data/", "train/parameter_norm/")
"""How the names of metrics begin that only some steps have."""

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bf16 TFLOP/s by a part of the GPU's name, from NVIDIA's data sheets (SXM boards, without sparsity)."""


class MetricsWriter(Callback):
    """Writes one line a step on the main rank; steps that are trained again after a resume replace the lost attempt's."""

    def __init__(self) -> None:
        self.file: LineFile | None = None
        self.board: SummaryWriter | None = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        if trainer.ranks.is_main:
            self._open(trainer)

    def on_rolled_back(self, trainer: "Trainer", rollback: "Rollback") -> None:
        if trainer.ranks.is_main:
            self.close()
            self._open(trainer)

    def _open(self, trainer: "Trainer") -> None:
        path = trainer.output_dir / METRICS_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_until(path, trainer.state.step)
        self.file = LineFile(path)
        self.board = SummaryWriter(str(trainer.output_dir / "tensorboard"), purge_step=trainer.state.step + 1)
        self.board.add_custom_scalars(LAYOUT)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Adds `perf/model_flops_utilization`: ModelConfig.flops_per_token(S) * tokens/s per device / peak FLOP/s."""
        config = trainer.config
        if peak := peak_tflops(trainer.ranks.device, config.logging.peak_tflops):
            flops = config.model.flops_per_token(config.data.sequence_length) * metrics["perf/tokens_per_second_per_device"]
            metrics["perf/model_flops_utilization"] = flops / (peak * 1e12)
        if trainer.ranks.device.type == "cuda":
            metrics["device/peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.file and is_written(trainer, metrics):
            step = trainer.state.step
            numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"step": step, "tokens": trainer.state.tokens, "stage": trainer.stage, "time": now, **numbers}
            self.file.write(json.dumps(line))
            self._draw(trainer, metrics)

    def close(self) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()

    def _draw(self, trainer: "Trainer", metrics: Metrics) -> None:
        step = trainer.state.step
        try:
            if self.board is None:
                self.board = SummaryWriter(str(trainer.output_dir / "tensorboard"))
            # All scalars of a step in one event: with one each, as add_scalar does it, writing a step costs twice as much.
            values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
            self.board._get_file_writer().add_summary(Summary(value=values), step)
        except OSError as error:  # of its background thread, after which the writer is of no use
            logger.warning("TensorBoard misses step %d (%s); %s has it", step, error.strerror, METRICS_NAME)
            self.board = None


class LineFile:
    """Lines appended to a file, each on disk or not at all; those that the disk refuses are written with the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.waiting = path, b""
        self.file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        self.waiting += line.encode() + b"\n"
        end = self.file.seek(0, 2)
        left = self.waiting
        try:
            while left:
                left = left[self.file.write(left) :]
            self.waiting = b""
        except OSError as error:
            logger.warning("%s cannot be written (%s): its lines wait", self.path, error.strerror)
            with contextlib.suppress(OSError):
                self.file.truncate(end)

    def close(self) -> None:
        self.file.close()


def is_written(trainer: "Trainer", metrics: Metrics) -> bool:
    """Whether a step's metrics are written: every so many steps, and wherever there is something that is not in every step."""
    step, every = trainer.state.step, trainer.config.logging.every_steps
    special = any(name.startswith(OCCASIONAL) for name in metrics) or not trainer.verdict.update
    return special or step % every == 0 or step == trainer.total_steps


def peak_tflops(device: torch.device, configured: float | None) -> float | None:
    """Peak of one device: the configured one, else by the GPU's name; None where neither is known."""
    if configured or device.type != "cuda":
        return configured
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
