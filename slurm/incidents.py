"""What interrupted a run, how long each recovery took, and which share of its time went into steps that count.

    python -m slurm.incidents RUN [--json | --markdown]

    last step   (fault)     detected    started again   first step    made up
    ----|----------|-----------|--------------|-------------|------------|----->  time
        trained    |  watchdog,|   queue,     | preflight,  | steps that |
        in vain    |  Slurm    |   requeue    | load        | were lost  |

The time to recover runs from the last step before the interruption (or from the fault, where one was put in on purpose) to the
first step beyond that one: by then the run is where it was. Everything is a function of slurm/history.py, so it can be asked at
any time, during the run and after it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from slurm.history import Attempt, Event, History, Step, read_history
from smol_config import UserError
from smol_console import exit_code, percent, table


@dataclass(frozen=True)
class Incident:
    """One interruption. Times are seconds since 1970; None: not yet, or not known."""

    what: str
    job: str
    nodes: list[str]
    """Those that were there before it and not after it."""
    last_step: int
    """The last one trained before it; 0: none."""
    last_step_time: float | None
    fault: float | None
    """When it was put in on purpose."""
    detected: float | None
    """When an alert or the end of the start told it."""
    started_again: float | None
    first_step: float | None
    made_up: float | None
    """The first step beyond last_step was done."""
    lost_steps: int
    """Trained again."""

    @property
    def began(self) -> float | None:
        """Where the time to recover begins."""
        return self.fault or self.last_step_time or self.detected

    @property
    def recover_seconds(self) -> float | None:
        """Until the run was where it had been."""
        return self.made_up - self.began if self.made_up and self.began else None


@dataclass(frozen=True)
class Time:
    """Where the wall time of a run went, from its first start on, in seconds."""

    steps: float = 0.0
    """That count."""
    lost: float = 0.0
    """Steps that were trained again, or passed over by a rollback."""
    between_steps: float = 0.0
    """Saving, evaluating, logging."""
    starting: float = 0.0
    """From a start to its first step: preflight, staging, loading, compiling."""
    ending: float = 0.0
    """From the last step of a start to its end: a hang is here, and the last save."""
    waiting: float = 0.0
    """Between an end and the next start: the queue. Not after the run was done."""

    @property
    def total(self) -> float:
        return sum(asdict(self).values())

    @property
    def goodput(self) -> float | None:
        """Share of the steps that count."""
        return self.steps / self.total if self.total else None


# --- incidents -------------------------------------------------------------------------------------------------------------


def incidents(history: History) -> list[Incident]:
    """Every end of a start that was not the run's own, oldest first; also the last, if nothing followed it yet."""
    attempts = history.training
    found = [_incident(history, before, after) for before, after in pairwise(attempts) if before.reason != "done"]
    if attempts and attempts[-1].reason not in (None, "done"):
        found.append(_incident(history, attempts[-1], None))
    return found


def _incident(history: History, before: Attempt, after: Attempt | None) -> Incident:
    until = after.began if after else float("inf")
    during, later = history.steps_between(before.began, until), history.steps_between(until)
    alerts = [alert for alert in history.alerts if before.began <= alert.time < until]
    faults = [fault for fault in history.faults if before.began <= fault.time < until]
    last = during[-1] if during else None
    told = [alert.time for alert in alerts if alert.event in ("stalled", "silent", "crashed", "stopped")]
    beyond = next((step for step in later if step.step > (last.step if last else 0)), None)
    lost = max(0, last.step - _resumed(after, later[0])) if last and after and later else 0
    return Incident(
        what=_what(before, after, alerts, history.alerts, faults, later[0].time if later else float("inf")),
        job=before.job,
        nodes=sorted(set(before.nodes) - set(after.nodes)) if after else [],
        last_step=last.step if last else 0,
        last_step_time=last.time if last else None,
        fault=faults[-1].time if faults else None,
        detected=min([*told, *([before.ended] if before.ended else [])], default=None),
        started_again=after.began if after else None,
        first_step=later[0].time if later else None,
        made_up=beyond.time if beyond else None,
        lost_steps=lost,
    )


def _resumed(after: Attempt, first: Step) -> int:
    """The step from which it went on. The newest checkpoint, unless it was damaged, or a first one did not come."""
    return min(after.checkpoint, first.step - 1) if after.checkpoint >= 0 else first.step - 1


def _what(
    before: Attempt, after: Attempt | None, alerts: list[Event], all_alerts: list[Event], faults: list[Event], first_step: float
) -> str:
    """In a few words."""
    told = {alert.event for alert in alerts}
    lost = sorted(set(before.nodes) - set(after.nodes)) if after else []
    if "silent" in told:
        what = "silent"
    elif "stalled" in told:
        what = "hang"
    elif before.reason == "asked for" and "nan" in told:
        what = "suspected device"
    elif before.reason in ("ended", None):
        what = f"lost node {','.join(lost)}" if lost else "ended by Slurm"
    else:
        what = "asked to end" if before.reason == "asked for" else before.reason
    damaged = after and any(a.event == "damaged_checkpoint" and after.began <= a.time <= first_step for a in all_alerts)
    put_in = f" ({', '.join(fault.event for fault in faults)})" if faults else ""
    return f"{what}{', damaged checkpoint' if damaged else ''}{put_in}"


# --- where the time went ---------------------------------------------------------------------------------------------------


def wall_time(history: History, now: float) -> Time:
    """From the first start to the last known moment: `now` where the last start has not ended."""
    attempts, total = history.training, Time()
    for attempt, after in zip(attempts, [*attempts[1:], None], strict=True):
        until = after.began if after else float("inf")
        steps = history.steps_between(attempt.began, until)
        last_sign = max(steps[-1].time if steps else attempt.began, attempt.ended or 0.0)
        # A start whose end was not told has ended at its last step, for all that is known.
        ended = last_sign if after or attempt.ended else max(now, last_sign)
        waits = after and attempt.reason != "done"  # a run that is continued one day has not waited for it
        total = _sum(total, _attempt_time(attempt, steps, ended), Time(waiting=until - ended if waits else 0.0))
    return total


def _attempt_time(attempt: Attempt, steps: list[Step], ended: float) -> Time:
    if not steps:
        return Time(starting=ended - attempt.began)
    counted = lost = pauses = 0.0
    first = min(steps[0].seconds or 0.0, steps[0].time - attempt.began)
    spans = [(steps[0], first, first)]
    for before, step in pairwise(steps):
        length = step.time - before.time
        # A line may stand for several steps; after a rollback the next one is of an earlier step, or of the same.
        trained = max(1, step.step - before.step) * step.seconds if step.seconds is not None else length
        spans.append((step, length, min(trained, length)))
    for step, length, trained in spans:
        pauses += length - trained
        counted += trained if step.counts else 0.0
        lost += 0.0 if step.counts else trained
    starting = steps[0].time - first - attempt.began
    return Time(counted, lost, pauses, starting, ended - steps[-1].time)


def _sum(*parts: Time) -> Time:
    return Time(*map(sum, zip(*(asdict(part).values() for part in parts), strict=True)))


def gpu_hours(history: History) -> dict[str, float]:
    """Of all jobs of the run, by train.purpose of their submission; those without GPUs are left out.

    A start whose end was not told counts up to its last step.
    """
    hours: dict[str, float] = {}
    for at, attempt in enumerate(history.attempts):
        if attempt.gpus:
            after = next((one.began for one in history.attempts[at + 1 :] if one.trains), float("inf"))
            steps = history.steps_between(attempt.began, after) if attempt.trains else []
            ended = attempt.ended or (steps[-1].time if steps else attempt.began)
            hours[attempt.purpose] = hours.get(attempt.purpose, 0.0) + attempt.gpus * (ended - attempt.began) / 3600
    return hours


# --- the command -----------------------------------------------------------------------------------------------------------

HEADER = ("interruption", "last step", "to detect", "to start", "to first step", "to make up", "recovered in", "steps again")


def rows(found: Sequence[Incident]) -> list[tuple[str, ...]]:
    """Of the table: each duration since the moment before it."""
    return [
        (
            one.what,
            f"{one.last_step:,}" if one.last_step else "-",
            span(one.began, one.detected),
            span(one.detected or one.began, one.started_again),
            span(one.started_again, one.first_step),
            span(one.first_step, one.made_up),
            span(one.began, one.made_up),
            f"{one.lost_steps:,}",
        )
        for one in found
    ]


def span(first: float | None, last: float | None) -> str:
    """Between two moments; a dash where one is not known."""
    return "-" if first is None or last is None else duration(max(0.0, last - first))


def duration(length: float) -> str:
    """Seconds in two units: 8 s, 3 min 05 s, 2 h 14 min, 12 d 3 h."""
    if length < 60:
        return f"{length:.0f} s"
    minutes, rest = divmod(round(length), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table for docs/results."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


def _summary(whole: Time, hours: dict[str, float]) -> list[tuple[str, str, str]]:
    names = ("steps that count", "steps trained again", "between steps", "starting", "ending", "waiting")
    lengths = zip(names, asdict(whole).values(), strict=True)
    return [
        *((name, duration(length), percent(length / (whole.total or 1.0))) for name, length in lengths),
        *((f"GPU-hours, {purpose}", f"{count:,.1f}", "") for purpose, count in sorted(hours.items())),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.incidents", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="everything, in seconds")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    history = read_history(options.run)
    if not history.training:
        raise UserError(f"{options.run} has no starts in slurm/starts.jsonl; give the folder of a run that was submitted")
    now = time.time()
    found, whole, hours = incidents(history), wall_time(history, now), gpu_hours(history)
    if options.json:
        told = [{**asdict(one), "recover_seconds": one.recover_seconds} for one in found]
        went = {**asdict(whole), "goodput": whole.goodput}
        print(json.dumps({"incidents": told, "time": went, "gpu_hours": hours}, indent=2))
        return
    draw = markdown if options.markdown else table
    since = datetime.fromtimestamp(history.training[0].began, UTC)
    print(f"begun {since:%F %R} UTC, {duration(whole.total)} so far; interruptions: {len(found)}\n")
    print(draw(HEADER, rows(found)), end="\n\n")
    print(draw(("wall time", "", "share"), _summary(whole, hours)))
    print(f"\ngoodput {percent(whole.goodput or 0.0)}")


if __name__ == "__main__":
    sys.exit(main())
