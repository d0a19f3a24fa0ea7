"""What became of a run, as its files tell it: the attempts, every step that was trained with its time, alerts, faults.

    RUN/slurm/starts.jsonl    (starts.py)        attempts: from a start to its end, or to the next start where no end was told
    RUN/metrics.jsonl         (the trainer)      steps that count
    RUN/metrics_lost.jsonl    (the trainer)      steps that were trained again, or passed over
    RUN/alerts.jsonl          (trainer, watcher) what was told
    RUN/slurm/faults.jsonl                       faults that were put in on purpose

Times are seconds since 1970. Clocks of different nodes are taken to agree to within a second, as munge wants it anyway.
Nothing here asks Slurm, so it works on a run's folder that was copied elsewhere.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from slurm.scheduler import Submission, submissions
from smol_config import ConfigError, load_mapping
from smol_train.callbacks.alerts import ALERTS_NAME

METRICS_NAME, LOST_NAME = "metrics.jsonl", "metrics_lost.jsonl"
"""As smol_train/callbacks/metrics.py has them, which needs torch."""
TAIL_BYTES = 1_000_000
"""Of metrics.jsonl, for those who look often: about the last thousand lines."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One start of a job of the run."""

    chain: str
    job: str
    nodes: list[str]
    began: float
    checkpoint: int
    """Step of the newest whole checkpoint then; -1: none."""
    ended: float | None = None
    """None: it runs, or its end was not told, as when the first node dies."""
    reason: str | None = None
    next: str | None = None
    """What followed: done, stop, again, leave."""
    why: str = ""
    """The same in a sentence."""
    trains: bool = True
    gpus: int = 0
    purpose: str = "main"


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the metrics: one step, or several where only every so many are written."""

    time: float
    """When it ended."""
    step: int
    seconds: float | None
    """Of this step; None: not told."""
    counts: bool
    """False: trained again later, or passed over."""


@dataclass(frozen=True)
class Event:
    """A line of alerts.jsonl or faults.jsonl."""

    time: float
    event: str
    text: str = ""


@dataclass(frozen=True)
class History:
    """All of it, each list oldest first."""

    attempts: list[Attempt]
    """Of all jobs; `training` has those of which checkpoints of the run are the progress."""
    steps: list[Step] = field(default_factory=list)
    alerts: list[Event] = field(default_factory=list)
    faults: list[Event] = field(default_factory=list)

    @property
    def training(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.trains]

    def steps_between(self, first: float, until: float = float("inf")) -> list[Step]:
        """Those that ended from `first` on and before `until`."""
        low, high = (bisect_left(self.steps, moment, key=lambda step: step.time) for moment in (first, until))
        return self.steps[low:high]


def read_history(run: Path, with_steps: bool = True) -> History:
    """Of a run's folder; files that are not there leave their list empty. Steps take seconds to read for a million of them."""
    faults = [Event(seconds(line), line.get("fault", "?"), str(line.get("target", ""))) for line in _faults(run)]
    return History(read_attempts(run), read_steps(run) if with_steps else [], read_alerts(run), faults)


def read_attempts(run: Path) -> list[Attempt]:
    """Of RUN/slurm/starts.jsonl. An end, or a refusal, belongs to the newest start of its chain."""
    known = {one.chain: one for one in submissions(run)}
    purposes = {chain: _purpose(one) for chain, one in known.items()}
    found: list[Attempt] = []
    for line in lines(run / "slurm" / "starts.jsonl"):
        chain, event = line.get("chain", ""), line.get("event")
        newest = next((at for at in reversed(range(len(found))) if found[at].chain == chain), None)
        if event == "start":
            of_job = known.get(chain)
            attempt = Attempt(chain, line["job"], line["nodes"], seconds(line), line["checkpoint"])
            if of_job:
                gpus = of_job.gpus_per_node * len(attempt.nodes)
                attempt = replace(attempt, trains=of_job.trains, gpus=gpus, purpose=purposes[chain])
            found.append(attempt)
        elif event == "end" and newest is not None and found[newest].ended is None:
            told = {"reason": line["reason"], "next": line["next"], "why": line.get("why", "")}
            found[newest] = replace(found[newest], ended=seconds(line), **told)
        elif event == "refused" and newest is not None:
            found[newest] = replace(found[newest], next="stop", why=line["why"])
    return found


def read_steps(run: Path) -> list[Step]:
    """All that were trained, in the order of their time. Lines from before they had a time are left out."""
    found: dict[tuple[float, int], Step] = {}
    for name in (LOST_NAME, METRICS_NAME):
        for line in lines(run / name):
            if "time" in line and "step" in line:
                step = Step(seconds(line), line["step"], line.get("perf/step_seconds"), name == METRICS_NAME)
                found[step.time, step.step] = step
    return sorted(found.values(), key=lambda step: step.time)


def read_alerts(run: Path) -> list[Event]:
    return [Event(seconds(line), line["event"], line["text"]) for line in lines(run / ALERTS_NAME)]


def lines(path: Path, last_bytes: int | None = None) -> Iterator[Line]:
    """The mappings of a .jsonl file, or of its end; what is not there or was cut off is passed over."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        if last_bytes is not None and file.seek(0, os.SEEK_END) > last_bytes:
            file.seek(-last_bytes, os.SEEK_END)
            file.readline()
        else:
            file.seek(0)
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def tail(run: Path) -> list[Line]:
    """The last lines of metrics.jsonl."""
    return list(lines(run / METRICS_NAME, TAIL_BYTES))


def seconds(line: Line) -> float:
    """A line's time; 0 where it has none."""
    return datetime.fromisoformat(line["time"]).timestamp() if "time" in line else 0.0


def _faults(run: Path) -> Iterator[Line]:
    return lines(run / "slurm" / "faults.jsonl")


def _purpose(submission: Submission) -> str:
    try:
        return str(load_mapping(submission.config, keep_unset=True).get("train", {}).get("purpose", "main"))
    except ConfigError:
        return "main"
