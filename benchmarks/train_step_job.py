"""What the command of benchmarks.train_step tells a process that measures one side, and what that process tells back.

Each measurement is a process of its own, so that neither library's state slows the other; both go through JSON files.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from smol_console import exit_code


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement."""

    config: str
    overrides: list[str]
    warmup: int
    """First steps, left out of the timings."""
    steps: int
    """Timed steps."""
    threads: int
    """Of torch, on the CPU."""
    weights: str
    """safetensors file of the initial weights under transformers' names: our side writes it, the peer reads it."""
    profile_rows: int = 0
    """Print this many operators of the timed steps; 0: none."""


@dataclasses.dataclass
class Measurement:
    """One side, step by step. The lists of seconds hold the timed steps, `losses` all of them."""

    losses: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)
    """From the end of the step before to the end of this one: all that the loop does."""
    data_wait: list[float] = dataclasses.field(default_factory=list)
    forward_backward: list[float] = dataclasses.field(default_factory=list)
    optimizer: list[float] = dataclasses.field(default_factory=list)
    """Clipping and the sum of the losses included."""
    collectives: list[float] = dataclasses.field(default_factory=list)
    """Gradient reduction, which is part of `forward_backward`, and sum of the losses, part of `optimizer`."""
    name: str = ""
    """Of the library and its settings, for the table."""
    device: str = ""
    """The GPU's name and memory; empty on the CPU."""
    peak_tflops: float | None = None
    """Of the device, where it is known."""
    peak_memory_gib: float | None = None
    """Of torch on the GPU."""
    skipped: str = ""
    """Why nothing was measured."""

    def add(self, wall: float, data_wait: float, forward_backward: float, optimizer: float, collectives: float = 0.0) -> None:
        self.wall.append(wall)
        self.data_wait.append(data_wait)
        self.forward_backward.append(forward_backward)
        self.optimizer.append(optimizer)
        self.collectives.append(collectives)

    @property
    def around(self) -> list[float]:
        """Callbacks and the loop: what no other part names."""
        parts = zip(self.wall, self.data_wait, self.forward_backward, self.optimizer, strict=True)
        return [wall - waited - passes - stepped for wall, waited, passes, stepped in parts]

    @property
    def outside(self) -> float:
        """Share of the steps spent outside forward, backward and optimizer: data wait, collectives, callbacks, the loop."""
        return (sum(self.data_wait) + sum(self.collectives) + sum(self.around)) / sum(self.wall)


def read(path: Path) -> Measurement:
    """What a side wrote."""
    return Measurement(**json.loads(path.read_text(encoding="utf8")))


def serve(measure: Callable[[Job], Measurement]) -> int:
    """Main function of a side's module: `python -m benchmarks.train_step_SIDE job.json result.json`."""
    job_path, result_path = map(Path, sys.argv[1:])
    job = Job(**json.loads(job_path.read_text(encoding="utf8")))
    import torch

    torch.set_num_threads(job.threads)
    return exit_code(lambda: _write(result_path, measure(job)))


def _write(path: Path, result: Measurement) -> None:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        result.device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        result.peak_memory_gib = torch.cuda.max_memory_allocated() / 2**30
    path.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf8")
