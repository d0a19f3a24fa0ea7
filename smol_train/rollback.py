"""The way back from a persistent spike: which checkpoint, which samples are passed over, and how that outlives a crash.

    good checkpoints before the spike, the spike's samples  --choose-->  Rollback  --enact-->  the folder on disk

What was decided is written into the checkpoint's own state.json, in one atomic step and before anything else happens: a
process that dies in the middle starts again from that checkpoint with the decision in force. Checkpoints that were saved
since are deleted: they hold the spike.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smol_data.schedule import SampleRange, Segment, batch_at
from smol_train.checkpoint_folder import (
    STATE,
    CheckpointError,
    TrainState,
    read_state,
    set_aside,
    state_text,
    step_of,
    whole_checkpoints,
)
from smol_train.checkpoint_integrity import newest_good
from smol_train.config import RunConfig
from smol_train.sections.spikes import SpikesConfig
from smol_train.spikes import SpikeMonitor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollback:
    """A return to an earlier checkpoint."""

    from_step: int
    """Steps done when it was decided."""
    first_spike: int
    """Steps done before the first spike."""
    checkpoint: Path
    to_step: int
    in_a_row: int
    """Rollbacks without a calm stretch between them, this one counted."""
    samples: SampleRange
    """That are passed over: those of the spikes, and the margin."""
    clip_until: int
    """Step until which the gradient norm is clipped harder."""


def rollbacks_in_a_row(state: TrainState, config: SpikesConfig) -> int:
    """How many rollbacks lie behind `state` without config.calm_steps steps of training after the latest."""
    return state.rollbacks if state.step - state.last_rollback < config.calm_steps else 0


def choose(config: RunConfig, state: TrainState, monitor: SpikeMonitor, segments: Sequence[Segment]) -> Rollback | None:
    """Where to go back to, the same on all ranks, all of which call; None when no good checkpoint lies before the spike.

    The first rollback in a row takes the newest checkpoint before the spike, each further one the one before that: what the
    skipped samples did not mend may be in the weights.
    """
    settings = config.spikes
    earlier = rollbacks_in_a_row(state, settings)
    folder = _good_before(config, monitor.first_step, earlier)
    if folder is None:
        return None
    first, last = batch_at(segments, monitor.first_step), batch_at(segments, state.step - 1)
    start = max(first.first_sample - settings.margin_steps * first.batch_size, read_state(folder).samples)
    end = last.first_sample + (1 + settings.margin_steps) * last.batch_size
    return Rollback(
        from_step=state.step,
        first_spike=monitor.first_step,
        checkpoint=folder,
        to_step=step_of(folder),
        in_a_row=earlier + 1,
        samples=(start, end),
        clip_until=state.step + settings.clip_steps,
    )


def _good_before(config: RunConfig, step: int, further: int) -> Path | None:
    """The newest good checkpoint of at most `step` steps, or one that is up to `further` places older."""
    run, found, before = Path(config.train.output_dir), None, step + 1
    for _ in range(1 + further):
        try:
            older = newest_good(run, config.checkpoint.verify, before=before)
        except CheckpointError as error:  # those that are left are damaged
            logger.warning("%s", error)
            break
        if older is None:
            break
        found, before = older, step_of(older)
    return found


def enact(run: Path, rollback: Rollback, skips: Sequence[SampleRange]) -> None:
    """Write the decision into the checkpoint's state and delete the checkpoints after it; on one rank, others wait.

    `skips` are the ranges that earlier rollbacks passed over; those that lie behind the checkpoint are in its state already,
    and the others must not be trained on now either.
    """
    state = read_state(rollback.checkpoint)
    ranges = sorted({*state.skips, *skips, rollback.samples})
    decided = replace(
        state, skips=ranges, rollbacks=rollback.in_a_row, last_rollback=rollback.from_step, clip_until=rollback.clip_until
    )
    partial = rollback.checkpoint / f"{STATE}.partial"
    partial.write_text(state_text(decided), encoding="utf8")
    partial.replace(rollback.checkpoint / STATE)
    for folder in whole_checkpoints(run):
        if step_of(folder) > rollback.to_step:
            shutil.rmtree(set_aside(folder, "partial"))
