"""Which samples a step takes: the config's stages resolved into segments of whole global batches.

    data.stages, batch size, data.skip_samples, history  --resolve_segments-->  [Segment, ...]  --batch_at(step)-->  samples

Samples of a run are numbered from 0. A run is a list of segments, each a stretch of steps of one stage with one batch size;
samples between two segments are skipped. The segments behind a checkpoint's step are its `history`: they are stored with it
and never move, whatever becomes of the batch size, so that a resumed run goes on where it stood. Pure functions; the cost
grows with the number of segments, never with steps or samples. See smol_data.order for what a sample then is.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import NamedTuple

from smol_data.config import StageConfig
from smol_data.manifest import DataError

SampleRange = tuple[int, int]
"""Samples [first, end)."""


@dataclass(frozen=True)
class Segment:
    """Steps [first_step, end_step) of one stage, each of `batch_size` samples, on samples [first_sample, end_sample).

    `dataclasses.asdict` gives its JSON form, `Segment(**mapping)` reads it back.
    """

    stage: str
    weights: dict[str, float]
    """As the config gives them; a dataset's share is its weight over their sum."""
    first_step: int
    steps: int
    first_sample: int
    batch_size: int

    @property
    def end_step(self) -> int:
        return self.first_step + self.steps

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.steps * self.batch_size


class GlobalBatch(NamedTuple):
    """The samples [first_sample, first_sample + batch_size) of one step."""

    first_sample: int
    batch_size: int
    stage: str


# --- asking ----------------------------------------------------------------------------------------------------------


def total_steps(segments: Sequence[Segment]) -> int:
    """Steps of the whole run."""
    return segments[-1].end_step if segments else 0


def samples_before(segments: Sequence[Segment], step: int) -> int:
    """Samples trained in steps [0, step), skipped ones not counted; times the sequence length, the tokens."""
    return sum(segment.steps * segment.batch_size for segment in truncate(segments, step))


def truncate(segments: Sequence[Segment], step: int) -> list[Segment]:
    """The history at a step: the segments of steps [0, step)."""
    return [replace(s, steps=min(s.steps, step - s.first_step)) for s in segments if s.first_step < step]


def batch_at(segments: Sequence[Segment], step: int) -> GlobalBatch:
    """The global batch of a step; raises DataError outside the run."""
    if not 0 <= step < total_steps(segments):
        raise DataError(f"step {step} is outside the run of {total_steps(segments)} steps; lengthen data.stages")
    segment = segments[bisect_right(segments, step, key=lambda s: s.first_step) - 1]
    first = segment.first_sample + (step - segment.first_step) * segment.batch_size
    return GlobalBatch(first, segment.batch_size, segment.stage)


def segment_of(segments: Sequence[Segment], sample: int) -> Segment:
    """The segment that trains a sample; raises DataError when none does."""
    at = bisect_right(segments, sample, key=lambda s: s.first_sample) - 1
    if at >= 0 and sample < segments[at].end_sample:
        return segments[at]
    end = segments[-1].end_sample if segments else 0
    if 0 <= sample < end:
        raise DataError(f"sample {sample} is not trained in this run: data.skip_samples, in whole global batches, covers it")
    raise DataError(f"sample {sample} is outside the run, whose samples end before {end}; lengthen data.stages")


def step_of(segments: Sequence[Segment], sample: int) -> int:
    """The step that trains a sample; raises DataError when none does."""
    segment = segment_of(segments, sample)
    return segment.first_step + (sample - segment.first_sample) // segment.batch_size


# --- resolving -------------------------------------------------------------------------------------------------------


def resolve_segments(
    stages: Sequence[StageConfig],
    sequence_length: int,
    global_batch_size: int | Sequence[tuple[int, int]],
    skip_samples: Sequence[SampleRange] = (),
    history: Sequence[Segment] = (),
) -> list[Segment]:
    """The run's segments: `history` as it is, then what remains of the stages.

    `global_batch_size` is in samples, or a ramp of (first step, samples) pairs beginning at step 0. A stage given in tokens
    takes the fewest whole steps that hold them. The last size of a ramp may change at any step, the others only ahead of
    `history`. A batch that would touch a range of `skip_samples` is passed over whole;
    stages keep their number of steps. Raises DataError, showing both, when stages, weights or skipped ranges disagree with
    what `history` has consumed; later stages may change, and the stage in progress may grow or shrink down to its present.
    """
    ramp = [(0, global_batch_size)] if isinstance(global_batch_size, int) else list(global_batch_size)
    _check_history(stages, sequence_length, skip_samples, history)
    _check_ramp(ramp, history)
    segments = list(history)
    for stage in stages:
        while True:
            step, sample = (segments[-1].end_step, segments[-1].end_sample) if segments else (0, 0)
            piece = bisect_right(ramp, step, key=lambda pair: pair[0]) - 1
            size = ramp[piece][1]
            steps = _steps_left(stage, segments, sequence_length, size)
            if steps <= 0:
                break
            if piece + 1 < len(ramp):
                steps = min(steps, ramp[piece + 1][0] - step)
            first = _pass_over(sample, size, skip_samples)
            steps = min(steps, _steps_to_skip(first, size, skip_samples) or steps)
            _append(segments, Segment(stage.name, dict(stage.weights), step, steps, first, size))
    return segments


def _append(segments: list[Segment], new: Segment) -> None:
    """Add a segment, or lengthen the last when it only goes on: cutting and resolving again gives the same list."""
    if segments:
        last = segments[-1]
        going_on = replace(new, first_step=last.first_step, steps=last.steps, first_sample=last.first_sample) == last
        if going_on and last.end_sample == new.first_sample:
            segments[-1] = replace(last, steps=last.steps + new.steps)
            return
    segments.append(new)


def _steps_left(stage: StageConfig, segments: Sequence[Segment], sequence_length: int, batch_size: int) -> int:
    """Steps of `batch_size` samples that the stage still needs after `segments`; below 0 when it has had too many."""
    done = [segment for segment in segments if segment.stage == stage.name]
    if stage.steps is not None:
        return stage.steps - sum(segment.steps for segment in done)
    assert stage.tokens is not None, "StageConfig asks for steps or tokens"
    tokens = stage.tokens - sum(segment.steps * segment.batch_size for segment in done) * sequence_length
    return -(-tokens // (batch_size * sequence_length))


def _pass_over(sample: int, batch_size: int, skips: Sequence[SampleRange]) -> int:
    """The first sample of the next batch that touches no skipped range, going on from `sample` in whole batches."""
    for first, end in sorted(skips):
        if first < sample + batch_size and sample < end:
            sample += -(-(end - sample) // batch_size) * batch_size
    return sample


def _steps_to_skip(sample: int, batch_size: int, skips: Sequence[SampleRange]) -> int | None:
    """Whole batches from `sample` until the next one that touches a skipped range; None when there is none ahead."""
    return min(((first - sample) // batch_size for first, end in skips if end > sample), default=None)


def _check_history(
    stages: Sequence[StageConfig], sequence_length: int, skips: Sequence[SampleRange], history: Sequence[Segment]
) -> None:
    begun = {name: list(group) for name, group in groupby(history, key=lambda s: s.stage)}
    planned = [stage.name for stage in stages[: len(begun)]]
    if planned != list(begun):
        raise DataError(
            f"data.stages begin with {planned}, but this run has already trained {list(begun)}; "
            "put the stages that have begun back in their order and change only later ones"
        )
    for stage, done in zip(stages, begun.values(), strict=False):
        if _present(stage.weights) != _present(done[-1].weights):
            raise DataError(
                f"data.stages: {stage.name!r} has weights {stage.weights}, but this run has trained it with "
                f"{done[-1].weights}; put them back and give the new weights to a new stage after it"
            )
        left = _steps_left(stage, done, sequence_length, done[-1].batch_size)
        if left < 0 or (left > 0 and done[-1] is not history[-1]):
            given = f"{stage.steps} steps" if stage.steps is not None else f"{stage.tokens} tokens"
            trained = sum(segment.steps for segment in done)
            tokens = sum(segment.steps * segment.batch_size for segment in done) * sequence_length
            raise DataError(
                f"data.stages: {stage.name!r} has a length of {given}, but this run has trained it for {trained} steps, "
                f"{tokens} tokens{'' if left < 0 else ', and gone on to the next stage'}; "
                "put its length back, or add a stage after those that have begun"
            )
    _check_skips(skips, history)


def _check_ramp(ramp: Sequence[tuple[int, int]], history: Sequence[Segment]) -> None:
    """What lies behind in a ramp must have been trained so. Its last size says nothing of the past: it is what a restart with
    another global batch changes."""
    for (first, size), (end, _) in pairwise(ramp):
        for segment in history:
            begin, stop = max(first, segment.first_step), min(end, segment.end_step)
            if begin < stop and segment.batch_size != size:
                raise DataError(
                    f"train.batch_ramp takes {size} samples in steps {first} to {end - 1}, but this run has trained steps "
                    f"{begin} to {stop - 1} with {segment.batch_size}; put back what lies behind step {history[-1].end_step} "
                    f"and change only what is ahead"
                )


def _check_skips(skips: Sequence[SampleRange], history: Sequence[Segment]) -> None:
    """Walking the past again with these ranges must pass over exactly what was passed over."""
    sample = 0
    for segment in history:
        first = _pass_over(sample, segment.batch_size, skips)
        reach = _steps_to_skip(first, segment.batch_size, skips)
        if first != segment.first_sample or (reach is not None and reach < segment.steps):
            raise DataError(
                f"data.skip_samples={list(skips)} changes the past: this run trained samples {segment.first_sample} to "
                f"{segment.end_sample - 1} after sample {sample - 1}, with these ranges it would not have; "
                "put the ranges behind the resumed step back as they were, or resume from an earlier checkpoint"
            )
        sample = segment.end_sample


def _present(weights: dict[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if weight}
