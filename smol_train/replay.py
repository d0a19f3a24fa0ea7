"""Train a range of samples again from a checkpoint, in a scratch folder, to tell bad data from bad state.

    python -m smol_train.replay --config C.yaml --checkpoint RUN/iter_N --report RUN/spikes/step_M
    torchrun --nproc-per-node 8 -m smol_train.replay --config C.yaml --checkpoint RUN/iter_N --samples A:B

The checkpoint's optimizer, learning rate and window of usual steps are used; the samples between its position and A are passed
over, but for a few steps as a control. Nothing is left out for standing out, nothing is saved, and RUN is only read. Samples
that stand out from two checkpoints are bad data; what stands out from one and not from another was the weights' state.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smol_config import UserError, load
from smol_console import exit_code
from smol_data.schedule import SampleRange, Segment, batch_at
from smol_train.callbacks.base import Callback, Metrics
from smol_train.checkpoint_folder import STATE, TrainState, read_state, state_text, whole_checkpoints
from smol_train.config import RunConfig
from smol_train.exit_codes import REFUSED, REQUEUE
from smol_train.replay_plan import (
    Conclusion,
    Plan,
    ReplayedStep,
    conclude,
    plan,
    read_metrics,
    read_report,
    render,
    segments_of,
    spike_samples,
)
from smol_train.spikes import SpikeMonitor

if TYPE_CHECKING:
    from smol_train.parallel import Ranks
    from smol_train.rerun import SuspectedDevice
    from smol_train.trainer import Trainer


@dataclass(frozen=True)
class Replay:
    """What came of it."""

    checkpoint: Path
    plan: Plan
    steps: list[ReplayedStep]
    """Of the replay: the control's, then the range's."""
    run: list[ReplayedStep]
    """What the run itself saw of the same samples, where that is still there."""
    conclusion: Conclusion

    def as_json(self) -> str:
        """Numbers that are none are null."""
        return json.dumps(_without_nan({**asdict(self), "checkpoint": str(self.checkpoint)}), indent=1) + "\n"


class _Observer(Callback):
    """Judges each step with the checkpoint's window and ends the training after the range."""

    def __init__(self, config: RunConfig, monitor: SpikeMonitor, end: int) -> None:
        self.config, self.monitor, self.end = config.spikes, monitor, end
        self.steps: list[ReplayedStep] = []
        self.ended = ""
        """Why the training ended before the range did."""

    def on_step_start(self, trainer: "Trainer") -> None:
        first, size, _ = batch_at(trainer.segments, trainer.state.step)
        if first + size >= self.end:
            trainer.request_stop(REQUEUE)

    def on_suspected_device(self, trainer: "Trainer", suspected: "SuspectedDevice") -> None:
        self.ended = str(suspected)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        first, size, stage = batch_at(trainer.segments, trainer.state.step - 1)
        loss, norm = metrics["train/loss"], metrics["train/grad_norm"]
        same_stage = self.monitor.stage == stage
        judged = bool(self.config.sigma) and same_stage and len(self.monitor.losses) >= self.config.least_window
        verdict = self.monitor.judge(self.config, stage, trainer.state.step - 1, loss, norm)
        self.steps.append(ReplayedStep((first, first + size), loss, norm, verdict.reason, judged))


def replay(
    config: RunConfig,
    ranks: "Ranks",
    checkpoint: Path,
    samples: SampleRange,
    report: Sequence[ReplayedStep] = (),
    output: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Replay:
    """Called on all ranks. `report`: the run's own steps; without them its metrics.jsonl is looked into. `output`: folder for
    the scratch files, seen by all ranks. Raises UserError."""
    from smol_train.checkpoint_integrity import find
    from smol_train.trainer import Trainer

    folder = find(checkpoint, config.checkpoint.verify)
    state = read_state(folder)
    planned = plan(config, state, samples)
    observer = _Observer(config, SpikeMonitor(**state.monitor), planned.samples[1])
    with _scratch(output, ranks.is_main) as scratch:
        if ranks.is_main:
            _mirror(folder, state, scratch)
        _wait()
        Trainer(_replay_config(config, planned, scratch), ranks, [*callbacks, observer]).fit()
        _wait()
    if observer.ended:
        raise UserError(f"the replay cannot be judged: {observer.ended}; run it again on other devices")
    shown = planned.control[0], planned.samples[1]
    run = list(report) or read_metrics(folder.parent / "metrics.jsonl", _newest_segments(config, folder), shown)
    run = [step for step in run if shown[0] <= step.samples[0] < shown[1]]
    inside = [step for step in run if step.samples[1] > planned.samples[0]]
    conclusion = conclude(planned, observer.steps, inside, config.spikes.least_window)
    return Replay(folder, planned, observer.steps, run, conclusion)


def _replay_config(config: RunConfig, planned: Plan, scratch: Path) -> RunConfig:
    """The run's configuration with the range next, every update applied, and another folder. What would change the learning
    rate stays as it is: the run's length, its schedule and its steps."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"skip_samples": planned.skips}),
            "train": config.train.model_copy(update={"output_dir": str(scratch)}),
            "spikes": config.spikes.model_copy(update={"sigma": 0, "rollback_after": 0}),
            "checkpoint": config.checkpoint.model_copy(update={"verify": "sizes"}),  # find() has seen to it
            "start_from": None,
        }
    )


def _mirror(folder: Path, state: TrainState, scratch: Path) -> None:
    """The checkpoint in the scratch folder, by links; only state.json is its own: without what a later rollback wrote into it,
    and without samples passed over, which are the plan's to say."""
    mirror = scratch / folder.name
    mirror.mkdir()
    for path in folder.iterdir():
        if path.name != STATE:
            (mirror / path.name).symlink_to(path.resolve())
    rolled_back_here = any(first >= state.samples for first, _ in state.skips)
    own = replace(state, skips=[], clip_until=0 if rolled_back_here else state.clip_until)
    (mirror / STATE).write_text(state_text(own), encoding="utf8")


def _newest_segments(config: RunConfig, folder: Path) -> list[Segment]:
    """The segments of the checkpoint's run, as its newest whole checkpoint knows them."""
    return segments_of(config, read_state((whole_checkpoints(folder.parent) or [folder])[-1]))


@contextmanager
def _scratch(output: Path | None, is_main: bool) -> Iterator[Path]:
    """A new folder that all ranks see, removed in the end."""
    import torch

    with tempfile.TemporaryDirectory(prefix="replay_", dir=output) if is_main else _nothing() as made:
        told: list[Any] = [made]
        torch.distributed.broadcast_object_list(told, src=0)
        scratch = Path(told[0])
        seen: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(seen, scratch.is_dir())
        if not all(seen):
            raise UserError(f"{scratch} is not seen by {seen.count(False)} ranks; give --output on a file system of all nodes")
        yield scratch


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _wait() -> None:
    import torch

    torch.distributed.barrier()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- command line ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done, whatever the conclusion; 93: bad input."""
    options = parse(arguments)
    return exit_code(lambda: _run(options), REFUSED)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m smol_train.replay",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="C.yaml", help="the run's configuration")
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN/iter_N", help="where to start; RUN: its newest")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--samples", type=_sample_range, metavar="A:B", help="samples A to B - 1 of the data order")
    which.add_argument("--report", type=Path, metavar="RUN/spikes/step_M", help="the samples of the spikes of a rollback")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the scratch folder is made; seen by all nodes")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> int:
    config = load(RunConfig, options.config, options.overrides)
    report = read_report(options.report) if options.report else []
    samples = spike_samples(options.report, report) if options.report else options.samples
    if options.output and not options.output.is_dir():
        raise UserError(f"--output {options.output} is no folder; make it first")
    # Below here torch and Megatron-Core load, which takes seconds.
    from smol_train.parallel import process_groups

    with process_groups(config.parallel, config.train.seed) as ranks:
        result = replay(config, ranks, options.checkpoint, samples, report, options.output)
        if ranks.is_main:
            first, end = result.plan.samples
            print(f"samples {first:,} to {end - 1:,} from {result.checkpoint}, after a control of {_control(result.plan)}")
            print(render(result.steps, result.run, result.conclusion))
            if options.json:
                options.json.write_text(result.as_json(), encoding="utf8")
    return 0


def _control(planned: Plan) -> str:
    first, end = planned.control
    return f"samples {first:,} to {end - 1:,}" if end > first else "no samples"


def _sample_range(text: str) -> SampleRange:
    """An argparse type: A:B with A < B."""
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range; give A:B with A below B, for samples A to B - 1")
    return int(first), int(end)


if __name__ == "__main__":
    sys.exit(main())
