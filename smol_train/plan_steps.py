"""The steps of a plan: stages, batch-size ramp, landmarks of the learning rate. plan.py puts them beside everything else."""

from itertools import pairwise

from smol_config import Section
from smol_data.schedule import batch_at
from smol_train.config import RunConfig
from smol_train.schedule import decay_start, learning_rate


class StagePlan(Section):
    """One stage of the data."""

    name: str
    steps: int
    tokens: int
    first_step: int
    last_step: int
    datasets: int
    """With a weight above 0."""


class BatchPlan(Section):
    """A stretch of steps with a smaller batch."""

    first_step: int
    last_step: int
    tokens_per_step: int


class Landmark(Section):
    """The learning rate of one step."""

    name: str
    step: int
    learning_rate: float


def stages(config: RunConfig) -> list[StagePlan]:
    """The stages in order, in steps counted from 1 and in tokens."""
    found = []
    for stage in config.data.stages:
        segments = [segment for segment in config.segments if segment.stage == stage.name]
        found.append(
            StagePlan(
                name=stage.name,
                steps=sum(segment.steps for segment in segments),
                tokens=sum(segment.steps * segment.batch_size for segment in segments) * config.data.sequence_length,
                first_step=segments[0].first_step + 1,
                last_step=segments[-1].end_step,
                datasets=sum(weight > 0 for weight in stage.weights.values()),
            )
        )
    return found


def ramp(config: RunConfig) -> list[BatchPlan]:
    """The stretches before the full batch."""
    return [
        BatchPlan(first_step=first + 1, last_step=end, tokens_per_step=size * config.data.sequence_length)
        for (first, size), (end, _) in pairwise(config.train.batch_sizes)
    ]


def landmarks(config: RunConfig) -> list[Landmark]:
    """The rate where the schedule bends, by step."""
    schedule, end = config.optim.schedule, config.train_steps
    steps = {"first step": 1, "end": end}
    if schedule.warmup_steps:
        steps["warm-up end"] = schedule.warmup_steps
    if (start := decay_start(schedule, end)) is not None and start < end:
        steps["last step at the peak"] = max(start, 1)
        steps["decay start"] = start + 1
    for milestone in schedule.milestones:
        steps[f"after milestone {milestone}"] = milestone + 1
    for piece in config.train.batch_ramp:
        steps[f"batch after {piece.global_batch_size}"] = piece.until_step + 1
    segments, full = config.segments, config.train.global_batch_size

    def rate(step: int) -> float:
        return learning_rate(config.optim, end, step, batch_at(segments, step - 1).batch_size / full)

    return [
        Landmark(name=name, step=step, learning_rate=rate(step))
        for name, step in sorted(steps.items(), key=lambda item: item[1])
    ]
