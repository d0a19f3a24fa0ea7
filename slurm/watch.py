"""Watches a run from beside it: what Slurm does not see is started again, what happens is told once and written down.

    python -m slurm.watch RUN [--every SECONDS]          bash slurm/watch.sh RUN, or a job: bash slurm/submit.sh watch CONFIG

    every minute   squeue, starts, heartbeats, metrics, disk, uploads  ->  watch_checks.py  ->  conditions
                   a condition that begins: RUN/alerts.jsonl and the run's webhook (alerts.py), once
                   a job whose ranks are silent: scontrol requeue
                   every start, end, alert and change of the job: a line of RUN/slurm/logbook.md

What was told is kept in RUN/slurm/watch.json, so a watcher may be killed and started again at any time, on any host that sees
the folder; a second one on the same run is refused. It ends when the run is done, on SIGTERM and on SIGINT.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conversion.service import pause, say, stop_signals
from conversion.watching import is_over, sole_worker
from slurm.history import lines, read_alerts, read_attempts, seconds, tail
from slurm.scheduler import Job, Slurm, Submission, submissions, training
from slurm.service import service_exit_code
from slurm.watch_checks import CHECKS, Condition, Facts, Room
from smol_config import UserError, load
from smol_console import whole_number
from smol_files import write_json
from smol_train.callbacks.alerts import ALERTS_NAME, Alerts
from smol_train.checkpoint_folder import bytes_on_disk, free_bytes, note_of, whole_checkpoints
from smol_train.config import RunConfig

logger = logging.getLogger(__name__)

LOGBOOK = "logbook.md"
SOURCES = (f"../{ALERTS_NAME}", "starts.jsonl")
"""Whose lines the logbook takes, as seen from RUN/slurm."""


@dataclass
class Told:
    """A condition that holds."""

    mark: str
    since: float
    told: bool = False
    requeued: bool = False
    alert: bool = False
    """It was worth an alert, so its end is worth a line."""


@dataclass
class State:
    """What a watcher has to know of the one before it; watch.json."""

    told: dict[str, Told] = field(default_factory=dict)
    """By the name of the check."""
    read: dict[str, int] = field(default_factory=dict)
    """Bytes of each source that are in the logbook."""


class Watcher:
    """Of one run, of which it holds the lock. `slurm` is asked; `alerts` takes what is worth a message."""

    def __init__(self, run: Path, slurm: Slurm, alerts: Alerts) -> None:
        self.run, self.slurm, self.alerts = run, slurm, alerts
        self.path = run / "slurm" / "watch.json"
        self.state = _read_state(self.path)
        self.submission: Submission | None = None
        self.config: RunConfig | None = None
        self.in_queue = False
        """Whether a job of the run was, at the last look."""

    def look(self, now: float) -> None:
        """Once: gather, compare, tell, write down."""
        if facts := self._gather(now):
            for name, check in CHECKS.items():
                finding = check(facts)
                if finding != "not known":
                    self._compare(name, finding, facts)
        self._write_down()
        self._save()

    # --- gathering ------------------------------------------------------------------------------------------------------------

    def _gather(self, now: float) -> Facts | None:
        submission = training(submissions(self.run))
        if submission is None:
            return None
        if submission != self.submission:
            self.submission, self.config = submission, load(RunConfig, submission.config, keep_unset=True)
        assert self.config
        jobs = self.slurm.jobs()
        mine = None if jobs is None else [job for job in jobs if job.name == submission.name]
        self.in_queue = bool(mine)
        attempts = [attempt for attempt in read_attempts(self.run) if attempt.chain == submission.chain]
        gone = mine == [] and attempts and not self.state.told.get("chain", Told("", 0.0)).told
        checkpoints = whole_checkpoints(self.run)
        return Facts(
            now=now,
            config=self.config,
            jobs=mine,
            attempts=attempts,
            ended_as=self.slurm.last_state(attempts[-1].job) if gone else None,
            alerts=read_alerts(self.run),
            metrics=tail(self.run),
            heartbeats=[beat for path in sorted(self.run.glob("heartbeat/rank_*.json")) for beat in lines(path)],
            room=_room(self.run, checkpoints),
            not_uploaded=[one for one in checkpoints if self.config.checkpoint.upload and not note_of(one)],
        )

    # --- comparing and telling ------------------------------------------------------------------------------------------------

    def _compare(self, name: str, finding: Condition | None, facts: Facts) -> None:
        told = self.state.told.get(name)
        if finding is None:
            if told and told.told and told.alert:
                self._note((facts.now, name, "is over"))
            self.state.told.pop(name, None)
            return
        if told is None or told.mark != finding.mark:
            told = self.state.told[name] = Told(finding.mark, facts.now, alert=finding.event is not None)
        done = ""
        if finding.requeue and not told.requeued:
            done = self._start_again(finding.requeue, facts.jobs or [], told)
        if told.told or facts.now - told.since < finding.patience:
            return
        told.told = True
        if finding.event:
            self.alerts.alert(finding.event, f"{finding.sentence}{done}")
        else:
            self._note((facts.now, name, finding.sentence))
        self._save()

    def _start_again(self, job: str, jobs: list[Job], told: Told) -> str:
        """What came of it, to be added to the sentence. Where Slurm refuses, it is tried again with the next look."""
        why = self.slurm.requeue(job)
        told.requeued = why is None
        if why is None:
            return "; it is put back into the queue"
        successor = next((one.id for one in jobs if one.id != job and one.state == "PENDING"), None)
        if successor and self.slurm.cancel(job) is None:
            told.requeued = True
            return f"; it is cancelled, and {successor} takes over"
        return f"; it cannot be put back into the queue ({why}): scancel {job}, and submit it again"

    # --- the logbook ----------------------------------------------------------------------------------------------------------

    def _write_down(self) -> None:
        """What others have told since the last look, in the order of its time."""
        entries, read = [], {}
        for source in SOURCES:
            found, read[source] = _from(self.run / "slurm" / source, self.state.read.get(source, 0))
            entries += [(seconds(line), *_sentence(line)) for line in found]
        self._note(*sorted(entries))
        self.state.read = read  # only now: where the disk is full, they are written down by a later look

    def _note(self, *entries: tuple[float, str, str]) -> None:
        """Each (time, what, sentence)."""
        if not entries:
            return
        lines = [f"- {datetime.fromtimestamp(moment, UTC):%F %T} **{what}** {text}\n" for moment, what, text in entries]
        with (self.run / "slurm" / LOGBOOK).open("a", encoding="utf8") as file:
            file.write(f"# Logbook of {self.run.name}\n\nTimes are UTC.\n\n" * (not file.tell()) + "".join(lines))
        for _, what, text in entries:
            say(f"{what}: {text}")

    def _save(self) -> None:
        write_json(self.path, asdict(self.state))


def _room(run: Path, checkpoints: list[Path]) -> Room:
    system = os.statvfs(run)
    size, count = 0, 0
    if checkpoints:
        with contextlib.suppress(OSError):  # retention may have taken it just now
            size, count = bytes_on_disk(checkpoints[-1]), len(list(checkpoints[-1].iterdir()))
    return Room(free_bytes(run), system.f_favail if system.f_files else None, size, count)


def _from(path: Path, begin: int) -> tuple[list[dict[str, Any]], int]:
    """The mappings of the whole lines after `begin`, and where they end."""
    if not path.exists():
        return [], begin
    with path.open("rb") as file:
        file.seek(begin)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)], begin + len(text)


def _sentence(line: dict[str, Any]) -> tuple[str, str]:
    """What happened and the sentence, of a line of one of the sources."""
    event = line.get("event", "?")
    if event == "start":
        since = f"from step {line['checkpoint']:,}" if line["checkpoint"] >= 0 else "no checkpoint yet"
        return event, f"job {line['job']} on {','.join(line['nodes'])}, {since}"
    if event == "end":
        return event, f"job {line['job']} with {line['code']} ({line['reason']}): {line.get('why', line['next'])}"
    return event, " ".join(str(line.get("text", line.get("why", ""))).split())


def _read_state(path: Path) -> State:
    """Empty where there is none, or none that can be read."""
    try:
        stored = json.loads(path.read_text(encoding="utf8"))
        return State({name: Told(**told) for name, told in stored["told"].items()}, stored["read"])
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"{path} cannot be read ({error}); what still holds is told again")
        return State()


# --- the command -----------------------------------------------------------------------------------------------------------


def alerts_of(run: Path) -> Alerts:
    """The run's own, but for the webhook where this process does not know it. Raises UserError for what is no run."""
    found = training(submissions(run))
    if found is None:
        raise UserError(f"{run} has no training job in slurm/code; give the folder of a run that was submitted")
    config = load(RunConfig, found.config, keep_unset=True).alerts
    if config.webhook and config.webhook.get_secret_value().startswith("${"):
        say(f"alerts.webhook={config.webhook.get_secret_value()} is not set here: alerts go to {run / ALERTS_NAME} only")
        config = config.model_copy(update={"webhook": None})
    return Alerts(config, run, is_main=True)


def watch(run: Path, every: float) -> None:
    """Until the run is done or a stop is asked for. Raises UserError for what is no run, or has a watcher."""
    alerts = alerts_of(run)
    with stop_signals() as stop, sole_worker(run / "slurm" / "watch.lock", "a watcher"), alerts:
        watcher = Watcher(run, Slurm(), alerts)
        say(f"watching {run}")
        over = False
        while not over and not stop():
            over = is_over(run)  # before looking: what it told last is then written down
            try:
                watcher.look(time.time())
            except Exception:  # a file system that is full or does not answer: the next look may succeed
                logger.exception("this look at %s failed; the next one is in %.0f s", run, every)
            over = over and not watcher.in_queue  # it is continued, or its job is on its way out
            if not over:
                pause(every, stop)
        say("the run is done" if over else "stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.watch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--every", type=whole_number(1), default=60, metavar="SECONDS", help="between two looks (default 60)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    return service_exit_code(lambda: watch(options.run, options.every))


if __name__ == "__main__":
    sys.exit(main())
