"""Jobs for ranks: replays as the command does them, with samples that are poisoned as in spike_jobs.py."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from spike_jobs import Fault, Watch
from tiny_runs import QUICKSTART

from smol_config import load
from smol_data.schedule import SampleRange
from smol_train import step
from smol_train.callbacks.base import Callback
from smol_train.config import RunConfig
from smol_train.replay import replay
from smol_train.replay_plan import read_report


class Tokens(Callback):
    """Keeps the inputs that each step trains on."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_step_start(self, trainer: Any) -> None:
        batches = trainer.batches.peek(trainer.loader.micro_batches(trainer.state.step))
        length = trainer.config.data.sequence_length
        self.rows += [row.tolist() for batch in batches for row in batch.tokens.view(-1, length)]


def replay_with_poison(
    overrides: Sequence[str],
    checkpoint: Path,
    samples: SampleRange,
    poisoned: SampleRange = (0, 0),
    factor: float = 50.0,
    report: Path | None = None,
) -> dict[str, Any]:
    """The result as a mapping, and the tokens that each sample held."""
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    watch, tokens, masked_sum = Watch(poisoned, factor), Tokens(), step.masked_sum
    step.masked_sum = watch.masked_sum(masked_sum)
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            run = read_report(report) if report else []
            result = replay(config, ranks, checkpoint, samples, run, callbacks=[watch, tokens])
            return {**asdict(result), "tokens": tokens.rows, "watched": watch.steps}
    finally:
        step.masked_sum = masked_sum


def spoil(overrides: Sequence[str], checkpoint: Path, folder: Path, factor: float) -> None:
    """Save `checkpoint` again at `folder`/iter_N with all its weights times `factor`."""
    from smol_train import checkpoint as checkpoints
    from smol_train.checkpoint_folder import read_state
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    start = f"start_from={{checkpoint: {checkpoint}, optimizer: true, data_position: true}}"
    config = load(RunConfig, QUICKSTART, [*overrides, start, f"train.output_dir={folder}"])
    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks)
        with torch.no_grad():
            for parameter in trainer.chunks[0].parameters():
                parameter.mul_(factor)
        trainer.optimizer.reload_model_params()
        state = read_state(checkpoint)
        checkpoints.save(folder, config, trainer.chunks, trainer.optimizer, state, "fully_reshardable").finish()
        trainer.loader.close()


def command(arguments: Sequence[str]) -> int:
    """python -m smol_train.replay."""
    from smol_train.replay import main

    return main(arguments)


def replay_on_a_faulty_device(overrides: Sequence[str], checkpoint: Path, samples: SampleRange, at_step: int) -> None:
    """One loss is NaN once, on rank 0."""
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    fault, masked_sum = Fault(rank=0, step=at_step, where="loss", times=1), step.masked_sum
    step.masked_sum = fault.masked_sum(masked_sum)
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            replay(config, ranks, checkpoint, samples, callbacks=[fault])
    finally:
        step.masked_sum = masked_sum


def replay_without_a_shared_folder(overrides: Sequence[str], checkpoint: Path, samples: SampleRange) -> None:
    """Rank 1 does not see the scratch folder, as on another node."""
    from smol_train import replay as module
    from smol_train.parallel import process_groups

    class Elsewhere(type(Path())):  # type: ignore[misc]
        def is_dir(self) -> bool:
            return False

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        try:
            if ranks.rank == 1:
                module.Path = Elsewhere
            replay(config, ranks, checkpoint, samples)
        finally:
            module.Path = Path
