"""What the watcher looks for, each a function of one look's facts: a Condition where it is so, None where it is not.

Nothing is asked, written or told here: watch.py gathers the facts, and tells a condition when it begins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from humanize import naturalsize

from slurm.history import Attempt, Event, Line, seconds
from slurm.incidents import duration
from slurm.scheduler import Job
from smol_console import short
from smol_train.checkpoint_folder import MARKER
from smol_train.config import RunConfig
from smol_train.sections.watch import AlertEvent

MARGIN_SECONDS = 300.0
"""Beyond the trainer's own watchdog, which waits for other ranks and for the alert, and ends stuck ranks 90 seconds late."""
WAITS_SECONDS = 1800.0
"""How long a job may wait before it is told."""
NOBODY_SECONDS = 90.0
"""Without any job in the queue: one that hands over to another is gone for a moment."""
NO_ANSWER_SECONDS = 600.0
"""A controller that is restarted or fails over is back by then."""
UPLOAD_SECONDS = 3600.0
"""After which a whole checkpoint should have arrived at its target."""
CHECKPOINTS_OF_ROOM = 2
"""Less room than for so many more is told: one is deleted only after the next is whole."""
RECENT_LINES, ENOUGH_LINES = 20, 100
"""Throughput: lines of metrics.jsonl that are compared with all the latest, and how many there must be of those."""


@dataclass(frozen=True)
class Condition:
    """Something that is so now, and is told once: when it has lasted for `patience`, and again when `mark` changes."""

    sentence: str
    event: AlertEvent | None = None
    """Also an alert, and told when it is over; None: a line of the logbook."""
    mark: str = ""
    patience: float = 0.0
    requeue: str | None = None
    """The job that is to be started again."""


@dataclass(frozen=True)
class Room:
    """On the file system of the run's folder."""

    free_bytes: int
    free_files: int | None
    """Inodes; None: the file system does not count them."""
    checkpoint_bytes: int
    """Of the newest checkpoint; 0: there is none."""
    checkpoint_files: int


@dataclass(frozen=True)
class Facts:
    """Of one look."""

    now: float
    config: RunConfig
    jobs: list[Job] | None
    """Of the newest submission that trains, in the queue; None: Slurm does not answer."""
    attempts: list[Attempt]
    """Of that submission."""
    ended_as: str | None = None
    """What Slurm says of the last job that is not in the queue any more."""
    alerts: list[Event] = field(default_factory=list)
    metrics: list[Line] = field(default_factory=list)
    """The last lines of metrics.jsonl."""
    heartbeats: list[Line] = field(default_factory=list)
    room: Room | None = None
    not_uploaded: list[Path] = field(default_factory=list)
    """Whole checkpoints that have no note, oldest first; none where nothing is uploaded."""

    @property
    def job(self) -> Job | None:
        """The one that runs, or else the first that waits."""
        jobs = self.jobs or []
        return next((job for job in jobs if job.state == "RUNNING"), jobs[0] if jobs else None)


Finding = Condition | Literal["not known"] | None


# --- what Slurm sees -------------------------------------------------------------------------------------------------------


def scheduler(facts: Facts) -> Finding:
    if facts.jobs is not None:
        return None
    return Condition("Slurm's controller does not answer; training may go on", "scheduler_silent", patience=NO_ANSWER_SECONDS)


def job_state(facts: Facts) -> Finding:
    if facts.jobs is None:
        return "not known"
    if not (job := facts.job):
        return None
    where = f" on {job.nodes}" if job.nodes else ""
    more = f"{where}, {job.left} until its time limit" if job.state == "RUNNING" else f"{where} ({job.reason})"
    return Condition(f"job {job.id} is {job.state}{more}", mark=f"{job.id} {job.state}{where}")


def waiting(facts: Facts) -> Finding:
    if facts.jobs is None:
        return "not known"
    job = facts.job
    if not job or job.state != "PENDING":
        return None
    text = f"job {job.id} has waited for {duration(WAITS_SECONDS)} ({job.reason})"
    return Condition(text, "job_waits", mark=job.id, patience=WAITS_SECONDS)


def stopped_chain(facts: Facts) -> Finding:
    """No job of the submission is left, and the run is not done."""
    if facts.jobs is None:
        return "not known"
    if facts.jobs:
        return None
    last = facts.attempts[-1] if facts.attempts else None
    if last and last.next == "stop":
        return Condition(f"the run has stopped: {last.why or last.reason}", "chain_stopped")
    slurm = f", {facts.ended_as} for Slurm" if facts.ended_as else ""
    ended = f"the last one, {last.job}, ended ({last.reason or 'nobody told why'}{slurm})" if last else "none has started"
    text = f"no job of the run is in the queue and it is not done: {ended}; submit it again"
    return Condition(text, "chain_stopped", patience=NOBODY_SECONDS)


# --- what Slurm does not see -----------------------------------------------------------------------------------------------


def silence(facts: Facts) -> Finding:
    """The job runs, and its ranks do not: longer than the trainer's watchdog would let them."""
    if facts.jobs is None:
        return "not known"
    watchdog, job = facts.config.watchdog, facts.job
    attempt = next((one for one in reversed(facts.attempts) if job and one.job == job.id), None)
    if not watchdog.minutes or not job or job.state != "RUNNING" or not attempt or attempt.ended:
        return None
    mark = f"{job.id} {attempt.began}"
    beats = [beat for beat in facts.heartbeats if seconds(beat) >= attempt.began]
    if not beats:
        for_long = facts.now - attempt.began
        if for_long <= 2 * 60 * watchdog.first_step_minutes + MARGIN_SECONDS:
            return None
        text = f"job {job.id} runs for {duration(for_long)}, and no rank has begun to train; look at its log"
        return Condition(text, "silent", mark)
    newest = max(beats, key=seconds)
    still = facts.now - seconds(newest)
    if still <= 60 * watchdog.minutes_of(newest["phase"]) + MARGIN_SECONDS:
        return None
    what = f"job {job.id} runs, but its ranks have been silent for {duration(still)} (phase '{newest['phase']}', step "
    return Condition(f"{what}{newest['step']:,})", "silent", mark, requeue=job.id)


def throughput(facts: Facts) -> Finding:
    """The latest steps against those before them; where the trainer has told it (it compares ranks), it is not told twice."""
    rates = [rate for line in facts.metrics if (rate := line.get("perf/tokens_per_second"))]
    began = facts.attempts[-1].began if facts.attempts else 0.0
    if len(rates) < ENOUGH_LINES or any(one.event == "throughput_drop" and one.time >= began for one in facts.alerts):
        return None
    now, usual = median(rates[-RECENT_LINES:]), median(rates)
    if now >= (1 - facts.config.logging.throughput_drop) * usual:
        return None
    return Condition(f"{short(now)} tokens/s, {now / usual:.0%} of the latest {len(rates)} steps' median", "throughput_drop")


def disk(facts: Facts) -> Finding:
    room = facts.room
    if not room or not room.checkpoint_bytes:
        return None
    if room.free_bytes < CHECKPOINTS_OF_ROOM * room.checkpoint_bytes:
        free, size = naturalsize(room.free_bytes), naturalsize(room.checkpoint_bytes)
        return Condition(f"{free} are free where the run writes, and a checkpoint takes {size}; make room", "disk_low", "bytes")
    if room.free_files is not None and room.free_files < CHECKPOINTS_OF_ROOM * room.checkpoint_files:
        text = f"{room.free_files:,} more files fit where the run writes, and a checkpoint has {room.checkpoint_files:,}"
        return Condition(f"{text}; delete some", "disk_low", "files")
    return None


def uploads(facts: Facts) -> Finding:
    if not facts.not_uploaded:
        return None
    oldest = facts.not_uploaded[0]
    age = facts.now - (oldest / MARKER).stat().st_mtime
    if age < UPLOAD_SECONDS:
        return None
    text = f"{len(facts.not_uploaded)} checkpoints have not arrived at their target, {oldest.name} since {duration(age)}"
    return Condition(f"{text}; see whether the upload runs", "upload_lag")


# --- how far it is ---------------------------------------------------------------------------------------------------------


def progress(facts: Facts) -> Finding:
    """A line a day."""
    if not facts.metrics:
        return "not known"
    return Condition(
        progress_text(facts.metrics, facts.config.train_steps), mark=f"{datetime.fromtimestamp(facts.now, UTC):%F}"
    )


def progress_text(metrics: list[Line], total: int) -> str:
    """Step, loss, speed and the time left, from the last lines of metrics.jsonl."""
    last = metrics[-1]
    loss, speed = last.get("train/loss"), last.get("perf/tokens_per_second")
    parts = [f"step {last['step']:,} of {total:,}"]
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    parts += [f"{short(speed)} tokens/s"] if speed else []
    left = seconds_left(metrics, total)
    return ", ".join([*parts, *([f"{duration(left)} left"] if left else [])])


def seconds_left(metrics: list[Line], total: int) -> float | None:
    """By the clock: saving and evaluating count, but not the gap of a restart. None: not known."""
    gaps = [
        (seconds(after) - seconds(before)) / (after["step"] - before["step"])
        for before, after in pairwise(metrics)
        if "time" in before and "time" in after and after["step"] > before["step"]
    ]
    if not gaps:
        return None
    usual = median(gaps)
    mean = sum(gap for gap in gaps if gap < 100 * usual) / len(gaps)
    return (total - metrics[-1]["step"]) * mean


CHECKS: dict[str, Callable[[Facts], Any]] = {
    "scheduler": scheduler,
    "job": job_state,
    "waiting": waiting,
    "chain": stopped_chain,
    "silence": silence,
    "throughput": throughput,
    "disk": disk,
    "uploads": uploads,
    "progress": progress,
}
"""By the name under which watch.json keeps what was told."""
