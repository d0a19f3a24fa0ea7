"""What a checkpoint says of the training behind it, for the model card: runs, stages, data, held-out losses, the beginning.

    a published model  <- start_from -  runs/pretrain/iter_0004720  <- start_from -  runs/long_32k/iter_0000200
        the origin                           the first run                               the second, being exported

Read from state.json (what was really trained, also where the configuration has changed since), run.yaml, metrics.jsonl and
the records that data_tools leaves beside datasets. Checkpoints are followed back as long as they are there.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from smol_data.order import Mixture, history_of
from smol_data.schedule import Segment
from smol_train.checkpoint_folder import MARKER, TrainState, read_run_mapping, read_state, whole_checkpoints

EVALUATION = "eval/loss/"
"""How the names of held-out losses begin in metrics.jsonl."""


@dataclass(frozen=True)
class Stage:
    """What a run has trained of one of its stages."""

    name: str
    steps: int
    sequence_length: int
    batch_sizes: tuple[int, ...]
    """Windows in a step, in their order; several after a ramp or a restart with another batch."""
    shares: dict[str, float]
    """By dataset; they sum to 1."""
    given: dict[str, int]
    """Windows that were trained on, by dataset."""

    @property
    def tokens(self) -> int:
        return sum(self.given.values()) * self.sequence_length


@dataclass(frozen=True)
class RunRecord:
    """One run up to a checkpoint."""

    name: str
    """Of its folder."""
    steps: int
    planned_steps: int
    stages: list[Stage]
    settings: dict[str, Any]
    """Its run.yaml."""

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)


@dataclass(frozen=True)
class Origin:
    """Where the first run's weights came from, when it did not draw them."""

    name: str
    """On the Hub, or the end of a path."""
    on_hub: bool = False
    published: bool = True
    """False: a checkpoint of an earlier run, which is not there any more."""


@dataclass(frozen=True)
class HeldOut:
    """The newest held-out losses up to a checkpoint."""

    step: int
    losses: dict[str, float]
    """Mean loss per target in nats, by set."""


@dataclass(frozen=True)
class Record:
    """All of it; `runs` is empty for weights that were converted and not trained here."""

    runs: list[RunRecord]
    origin: Origin | None
    held_out: HeldOut | None
    repositories: dict[str, str]
    """Of the Hub, by dataset, where it is known."""

    @property
    def tokens(self) -> int:
        """Trained on in all of the runs."""
        return sum(run.tokens for run in self.runs)


def read_record(folder: Path) -> Record:
    """The record of one whole checkpoint; raises what reading its run.yaml and state.json raises."""
    runs, origin = _runs(folder)
    repositories = {name: repository for run in runs for name, repository in _repositories(run).items()}
    return Record(runs, origin, _held_out(folder), repositories)


def hub_name(folder: Path) -> str | None:
    """namespace/name of a folder in the Hub's cache on this machine, None for any other folder."""
    cached = re.search(r"/models--([^/]+)/snapshots/", f"{folder.resolve()}/")
    return cached[1].replace("--", "/", 1) if cached else None


# --- runs ------------------------------------------------------------------------------------------------------------------


def _runs(folder: Path) -> tuple[list[RunRecord], Origin | None]:
    """The runs that led to a checkpoint, the first one first, and what the first started from."""
    runs: list[RunRecord] = []
    seen: set[Path] = set()
    in_history = False  # whether the checkpoint's own steps stand in the history of the one that goes on from it
    here = folder
    while True:
        seen.add(here.resolve())
        settings, state = read_run_mapping(here), read_state(here)
        if "train" not in settings:  # no trainer saved it: from-hf did
            source = Path((settings.get("data") or {}).get("tokenizer") or "another folder")
            on_hub = hub_name(source)
            return runs, Origin(on_hub or source.name, on_hub=on_hub is not None)
        if not in_history:
            runs.insert(0, _run(here, settings, state))
        start = settings.get("start_from")
        if start is None:
            return runs, None
        in_history = bool(start["data_position"])
        earlier = _checkpoint(Path(start["checkpoint"]))
        if earlier is None or earlier.resolve() in seen:
            return runs, Origin("/".join(Path(start["checkpoint"]).parts[-2:]), published=False)
        here = earlier


def _checkpoint(path: Path) -> Path | None:
    """What start_from means: a checkpoint, or a run's folder with its newest one."""
    if (path / MARKER).is_file():
        return path
    return next(iter(whole_checkpoints(path)[::-1]), None)


def _run(folder: Path, settings: dict[str, Any], state: TrainState) -> RunRecord:
    history = history_of(state.data) if state.data else []
    planned = [Segment(**segment) for segment in state.data.get("planned", [])]
    end = max((segment.end_step for segment in (*history, *planned)), default=state.step)
    name = folder.resolve().parent.name
    return RunRecord(name, state.step, end, _stages(history, state.data.get("sequence_length", 0)), settings)


def _stages(history: Sequence[Segment], sequence_length: int) -> list[Stage]:
    """The stages of what was trained. A stage's samples are numbered from the end of the one before, and its mixture says
    which dataset each of them comes from (smol_data.order)."""
    stages: list[Stage] = []
    first = 0
    for name, group in groupby(history, key=lambda segment: segment.stage):
        segments = list(group)
        mixture = Mixture(segments[-1].weights)
        spans = [(segment.first_sample - first, segment.end_sample - first) for segment in segments]
        given = {
            dataset: sum(mixture.count(choice, end) - mixture.count(choice, begin) for begin, end in spans)
            for choice, dataset in enumerate(mixture.names)
        }
        total = sum(segments[-1].weights.values())
        shares = {dataset: weight / total for dataset, weight in segments[-1].weights.items() if weight}
        sizes = tuple(dict.fromkeys(segment.batch_size for segment in segments))
        stages.append(Stage(name, sum(segment.steps for segment in segments), sequence_length, sizes, shares, given))
        first = segments[-1].end_sample
    return stages


def tokens_by_dataset(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Tokens that each dataset gave to all of the runs; the largest first."""
    tokens: Counter[str] = Counter()
    for stage in (stage for run in runs for stage in run.stages):
        tokens.update({name: windows * stage.sequence_length for name, windows in stage.given.items()})
    return dict(tokens.most_common())


# --- beside the checkpoint -------------------------------------------------------------------------------------------------


def _repositories(run: RunRecord) -> dict[str, str]:
    """Dataset -> Hub repository, where `data_tools prepare` left its record NAME.source.json beside the dataset's folder."""
    found = {}
    for name, place in (run.settings["data"].get("datasets") or {}).items():
        folder = Path(place)
        try:
            source = json.loads(folder.with_name(f"{folder.name}.source.json").read_text(encoding="utf8"))
            if source["repository"]:
                found[name] = str(source["repository"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not made by `prepare`, or on another machine by now
    return found


def _held_out(folder: Path) -> HeldOut | None:
    """From the run's metrics.jsonl: the last evaluation at or before the checkpoint's step; None without any."""
    step, newest = read_state(folder).step, None
    try:
        with (folder.resolve().parent / "metrics.jsonl").open("rb") as lines:
            for line in lines:
                if EVALUATION.encode() not in line:
                    continue
                metrics = json.loads(line)
                if metrics["step"] > step:
                    break
                losses = {name.removeprefix(EVALUATION): metrics[name] for name in metrics if name.startswith(EVALUATION)}
                newest = HeldOut(metrics["step"], {name: value for name, value in losses.items() if value is not None})
    except (OSError, ValueError):  # none there, or a line that is being written
        pass
    return newest
