"""A short run on every rank, what it leaves to compare, and how close two of them have to be.

Tolerances, relative to the reference and over all steps. Another layout adds in another order, and a loss is a mean over a
whole batch, a gradient norm a root over all parameters:

    fp32   losses 64, gradient norms 512 spacings of fp32 (2^-23): 8e-6 and 6e-5; seen on tiny models: 7e-8 and 2e-6
    bf16   losses 1/4, gradient norms 8 spacings of bf16 (2^-8): 1e-3 and 3e-2; seen: 2e-4 and 9e-3

Weights in bf16 are rounded at every step, and a norm near a saddle shows that most. Faults show at 1e-2 of a loss and above
(optimizer state lost), or at 1e-1 of a norm (a gradient not summed over ranks): take train.precision=fp32 where in doubt.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smol_data.batch import PackedBatch
from smol_data.schedule import batch_at
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig
from smol_train.launch import launched_as
from smol_train.memory import Precision

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

LOSS_TOLERANCE: dict[Precision, float] = {"fp32": 64 * 2.0**-23, "bf16": 2.0**-8 / 4}
NORM_TOLERANCE: dict[Precision, float] = {"fp32": 512 * 2.0**-23, "bf16": 8 * 2.0**-8}


class Run(NamedTuple):
    """What a run on some ranks did, step by step."""

    first_step: int
    """The first step that it trained, counted from 0."""
    exit_code: int
    losses: list[float]
    norms: list[float]
    samples: list[list[int]]
    """[first sample, samples] of each step's global batch, as the data order numbers them."""
    windows: list[list[str]]
    """Of each step: digests of the tokens that the model was given, sorted; one a window, over all data-parallel ranks."""

    def after(self, step: int) -> "Run":
        """What it did from `step` on."""
        cut = step - self.first_step
        return Run(step, self.exit_code, self.losses[cut:], self.norms[cut:], self.samples[cut:], self.windows[cut:])


def train(config: RunConfig, save: bool = False, kill_at: int | None = None, stop_at: int | None = None) -> dict[str, Any]:
    """A job: train to the end of `config`, or be killed when `kill_at` steps are done, or be told to stop after `stop_at`.

    kill -9 on every rank, at its own pace; to stop, the last rank alone gets a SIGTERM. With `save`, checkpoints as configured.
    """
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.signals import StopOnSignal
    from smol_train.determinism import deterministic
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    with deterministic(config.train.deterministic), process_groups(config.parallel, config.train.seed) as ranks:
        record = Record()
        callbacks = [StopOnSignal(), record, Interruption(kill_at, stop_at), *([Checkpointing()] if save else [])]
        trainer = Trainer(config, ranks, callbacks)
        first_step = trainer.state.step
        code = trainer.fit()
        place = [ranks.data_parallel_rank, ranks.context.rank]
        return {"first_step": first_step, "exit_code": code, "place": place, "steps": record.steps}


class Record(Callback):
    """Every step's loss, gradient norm and data."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.windows: list[str] = []

    def on_fit_start(self, trainer: "Trainer") -> None:
        trainer.batches.inner = self._seen(trainer.batches.inner, trainer.config.data.sequence_length)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        batch = batch_at(trainer.segments, trainer.state.step - 1)
        step = {"loss": metrics["train/loss"], "norm": metrics["train/grad_norm"]}
        self.steps.append({**step, "samples": [batch.first_sample, batch.batch_size], "windows": self.windows})
        self.windows = []

    def _seen(self, batches: Iterator[PackedBatch], length: int) -> Iterator[PackedBatch]:
        for batch in batches:
            tokens = batch.tokens[0].cpu()
            # A row of windows; under context parallelism a part of a row, which is compared as it is.
            parts = tokens.split(length) if len(tokens) % length == 0 else [tokens]
            self.windows += [hashlib.blake2b(part.numpy().tobytes(), digest_size=8).hexdigest() for part in parts]
            yield batch


class Interruption(Callback):
    """What comes from outside, at a step of choice."""

    def __init__(self, kill_at: int | None, stop_at: int | None) -> None:
        self.kill_at, self.stop_at = kill_at, stop_at

    def on_step_start(self, trainer: "Trainer") -> None:
        ranks = trainer.ranks
        if trainer.state.step == self.kill_at:
            os.killpg(0, signal.SIGKILL)  # this rank and the writers of its checkpoints; nobody else is in its group
        if self.stop_at is not None and trainer.state.step + 1 == self.stop_at and ranks.rank == ranks.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def together(ranks: list[dict[str, Any]]) -> Run:
    """The run of all ranks. Raises ValueError where ranks that share a row were given different tokens."""
    by_place: dict[tuple[int, ...], list[list[str]]] = {}
    for number, rank in enumerate(ranks):
        seen = [step["windows"] for step in rank["steps"]]
        if by_place.setdefault(tuple(rank["place"]), seen) != seen:
            raise ValueError(f"rank {number} was given other tokens than the other ranks of its copy of the model")
    first = ranks[0]
    steps = first["steps"]
    return Run(
        first["first_step"],
        first["exit_code"],
        [step["loss"] for step in steps],
        [step["norm"] for step in steps],
        [step["samples"] for step in steps],
        [sorted(digest for seen in by_place.values() for digest in seen[at]) for at in range(len(steps))],
    )


class Distance(NamedTuple):
    """The largest relative differences of two runs over the same steps; infinite where a number is missing or not one."""

    loss: float
    norm: float

    def __str__(self) -> str:
        if self == (0.0, 0.0):
            return "bit for bit"
        return f"losses to {self.loss:.1e}, gradient norms to {self.norm:.1e}"

    def within(self, precision: Precision) -> bool:
        return self.loss <= LOSS_TOLERANCE[precision] and self.norm <= NORM_TOLERANCE[precision]


def distance(reference: Run, other: Run) -> Distance:
    return Distance(_furthest(reference.losses, other.losses), _furthest(reference.norms, other.norms))


def _furthest(reference: list[float], other: list[float]) -> float:
    if not reference or len(reference) != len(other):
        return float("inf")
    apart = [abs(a - b) / abs(a) if a else abs(b) for a, b in zip(reference, other, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in apart)  # NaN is equal to nothing, itself included


def tolerance_text(precision: Precision) -> str:
    return f"{precision}: losses {LOSS_TOLERANCE[precision]:.0e}, norms {NORM_TOLERANCE[precision]:.0e}"


def data_fault(reference: Run, other: Run) -> str:
    """The first step at which two runs were given different data; empty when there is none."""
    for at, (mine, theirs) in enumerate(zip(reference.samples, other.samples, strict=True)):
        step = reference.first_step + at + 1
        if mine != theirs:
            return f"step {step} took samples {_span(theirs)}, the reference {_span(mine)}"
        if reference.windows[at] != other.windows[at]:
            return f"step {step} (samples {_span(mine)}) was given other tokens than the reference"
    return ""


def _span(samples: list[int]) -> str:
    return f"{samples[0]} to {samples[0] + samples[1] - 1}"


def save_initial_weights(config: RunConfig, folder: Path) -> None:
    """A job: the configuration's initial weights, for runs in other layouts to start from."""
    from smol_train import checkpoint
    from smol_train.model import build_chunks, unwrap
    from smol_train.optim import METADATA
    from smol_train.parallel import process_groups

    with process_groups(config.parallel, config.train.seed):
        chunks = enumerate(build_chunks(config))
        weights = {f"chunk_{number}": unwrap(chunk).sharded_state_dict(metadata=METADATA) for number, chunk in chunks}
        checkpoint.write_weights_only(folder, weights, config.model_dump(mode="json", exclude_none=True))


def free_bytes() -> int:
    """A job: memory that one rank may fill here, with some left for what estimates leave out."""
    import psutil
    import torch

    from smol_train.search import USABLE_MEMORY

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(launched_as()[2])
        return int(free * USABLE_MEMORY)
    return int(psutil.virtual_memory().available * USABLE_MEMORY)
