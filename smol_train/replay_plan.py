"""Around a replay (replay.py): which samples it trains, what the run itself saw of them, and what follows from the two.

    state.json, samples A:B  --plan-->  Plan  --replay-->  ReplayedSteps  --conclude-->  Conclusion

Samples are a function of their number, so leaving out those before A changes nothing about what A to B - 1 are, as long as
they belong to the stage that the checkpoint stands in: a stage is counted from where the one before it ended. No torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smol_config import UserError
from smol_data.order import history_of
from smol_data.schedule import SampleRange, Segment, batch_at, resolve_segments, total_steps
from smol_train.checkpoint_folder import TrainState
from smol_train.config import RunConfig

CONTROL_STEPS = 4
"""Steps trained before the range, on what comes next after the checkpoint: if they stand out, it is the checkpoint."""

Kind = Literal["data", "state", "nothing", "not judged"]


@dataclass(frozen=True)
class Plan:
    """What a replay trains."""

    samples: SampleRange
    """The range, widened to whole global batches."""
    control: SampleRange
    """Samples trained before it; may be empty."""
    skips: list[SampleRange]
    """Everything else up to the range, for data.skip_samples."""


@dataclass(frozen=True)
class ReplayedStep:
    """One step, of the replay or of the run."""

    samples: SampleRange
    loss: float
    grad_norm: float
    reason: str = ""
    """What stood out, in words; empty when nothing did."""
    judged: bool = True
    """The window held enough steps."""
    step: int | None = None
    """Step of the run; None for one of the replay."""


@dataclass(frozen=True)
class Conclusion:
    """What a replay says of the cause."""

    kind: Kind
    sentence: str


def segments_of(config: RunConfig, state: TrainState) -> list[Segment]:
    """The segments of the run that is at `state`: behind it as trained, ahead as it would go on."""
    data, history = config.data, history_of(state.data) if state.data else []
    skips = [*data.skip_samples, *state.skips]
    return resolve_segments(data.stages, data.sequence_length, config.train.batch_sizes, skips, history)


def plan(config: RunConfig, state: TrainState, samples: SampleRange) -> Plan:
    """What to train from a checkpoint's state for the samples; raises UserError when they cannot follow it.

    Ranges that the run passed over stay passed over, but for those that hold any of `samples`: looking at them is the purpose.
    In a batch-size ramp the batches are of the checkpoint's step, and may lie otherwise than in the run.
    """
    first, end = samples
    if not state.data or state.optimizer is None:
        raise UserError("the checkpoint holds no optimizer or no data position (converted weights?); give one that a run saved")
    segments = segments_of(config, state)
    if state.step >= total_steps(segments):
        raise UserError(f"the checkpoint is the end of the run (step {state.step}), nothing follows it; give an earlier one")
    position, batch = state.samples, batch_at(segments, state.step)
    if first < position:
        raise UserError(
            f"samples {first}:{end} begin before the checkpoint's position, sample {position}: its weights have seen what lies "
            f"there; give an earlier checkpoint or later samples"
        )
    stage_end = max(segment.end_sample for segment in segments if segment.stage == batch.stage)
    if end > stage_end:
        raise UserError(
            f"samples {first}:{end} do not all belong to stage {batch.stage!r}, in which the checkpoint goes on and whose "
            f"samples end before {stage_end}; give samples of that stage or a checkpoint of theirs"
        )
    size = batch.batch_size
    begin = position + (first - position) // size * size
    last = position - (position - end) // size * size
    control = (position, min(begin, position + CONTROL_STEPS * size))
    passed_over = [*config.data.skip_samples, *state.skips]
    skips = [one for one in passed_over if one[1] <= first or one[0] >= end]
    if control[1] < begin:
        skips.append((control[1], begin))
    return Plan((begin, last), control, sorted(skips))


# --- what the run saw ------------------------------------------------------------------------------------------------------


def read_report(folder: Path) -> list[ReplayedStep]:
    """The steps of RUN/spikes/step_N; raises UserError when there is no such report."""
    try:
        lines = json.loads((folder / "steps.json").read_text(encoding="utf8"))
        return [
            ReplayedStep(
                (line["samples"][0], line["samples"][1]), line["loss"], line["grad_norm"], line["reason"], step=line["step"]
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--report {folder}: steps.json cannot be read as a spike's report ({type(error).__name__}: {error}); give a "
            f"folder RUN/spikes/step_N, or --samples A:B"
        ) from error


def spike_samples(folder: Path, steps: Sequence[ReplayedStep]) -> SampleRange:
    """Samples of the spikes in a row that ended in the rollback; the margin around them is left out."""
    spikes: list[ReplayedStep] = []
    for step in reversed(steps):
        if not step.reason:
            break
        spikes.append(step)
    if not spikes:
        raise UserError(f"--report {folder}: its last step is no spike; give --samples A:B")
    return spikes[-1].samples[0], spikes[0].samples[1]


def read_metrics(path: Path, segments: Sequence[Segment], samples: SampleRange) -> list[ReplayedStep]:
    """The steps of a run's metrics.jsonl that trained any of the samples; none where their lines are gone.

    `segments` are the run's. A line says that an update was left out, not why.
    """
    found, steps = [], total_steps(segments)
    for line in _lines(path):
        if not 1 <= line["step"] <= steps:
            continue
        first, size, _ = batch_at(segments, line["step"] - 1)
        if first < samples[1] and samples[0] < first + size:
            reason = "its update was left out" if line.get("train/updates_left_out") else ""
            loss, norm = (_number(line["train/loss"]), _number(line["train/grad_norm"]))
            found.append(ReplayedStep((first, first + size), loss, norm, reason, step=line["step"]))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf8")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last one of a run that is writing
            continue
    return lines


def _number(value: float | None) -> float:
    """A scalar as it was before JSON, which has no NaN."""
    return float("nan") if value is None else value


# --- what follows ----------------------------------------------------------------------------------------------------------


def conclude(planned: Plan, replayed: Sequence[ReplayedStep], run: Sequence[ReplayedStep], least_window: int) -> Conclusion:
    """Bad data or bad state, from the replay's steps and the run's own of the same samples."""
    control = [step for step in replayed if step.samples[1] <= planned.samples[0] and step.judged]
    inside = [step for step in replayed if step.samples[0] >= planned.samples[0]]
    first, end = planned.samples
    strange = [step for step in control if step.reason]
    if strange and 2 * len(strange) >= len(control):  # one of several may be chance
        return Conclusion(
            "state",
            f"{len(strange)} of the {len(control)} steps before the range stand out as well: the weights or the optimizer of "
            f"this checkpoint, not samples {first} to {end - 1}; replay them from an earlier one",
        )
    if not all(step.judged or step.reason for step in inside):
        return Conclusion(
            "not judged",
            f"cannot be judged: the checkpoint's window of usual steps is shorter than spikes.least_window={least_window}, or "
            f"spikes.sigma is 0; give a checkpoint later in its stage, or lower spikes.least_window",
        )
    if spikes := [step for step in inside if step.reason]:
        before = "" if control else "; no step lies before the range to tell whether usual samples do too"
        return Conclusion(
            "data",
            f"{len(spikes)} of {len(inside)} steps stand out from this checkpoint too, first samples {spikes[0].samples[0]} to "
            f"{spikes[0].samples[1] - 1}: the data{before}",
        )
    if any(step.reason for step in run):
        return Conclusion(
            "state",
            f"what stood out in the run does not from this checkpoint, in any of {len(inside)} steps: the weights or the "
            f"optimizer at that time, not the data",
        )
    return Conclusion("nothing", f"none of {len(inside)} steps stands out from this checkpoint")


def render(replayed: Sequence[ReplayedStep], run: Sequence[ReplayedStep], conclusion: Conclusion) -> str:
    """A line for each batch, the run's own numbers to the right, and the conclusion."""
    seen = {step.samples: step for step in run}
    lines = [f"{'samples':>27}  {'loss':>9} {'norm':>9}  {'run: step':>10} {'loss':>9} {'norm':>9}"]
    for step in replayed:
        line = f"{step.samples[0]:>13,}:{step.samples[1]:<13,}  {step.loss:9.4f} {step.grad_norm:9.4f}"
        if then := seen.get(step.samples):
            line += f"  {then.step or 0:>10,} {then.loss:9.4f} {then.grad_norm:9.4f}"
            line += "  left out by the run" if then.reason else ""
        lines.append(line + (f"  <- {step.reason}" if step.reason else "" if step.judged else "  (not judged)"))
    return "\n".join([*lines, conclusion.sentence])
