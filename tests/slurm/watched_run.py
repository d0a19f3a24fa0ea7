"""A run that is watched, for the tests of the watcher: folders and a queue made by hand, a clock that the test sets."""

import json
import os
from pathlib import Path

from run_stories import T0, Story, submission
from tiny_runs import QUICKSTART

from slurm.scheduler import Job, Slurm
from slurm.watch import Watcher
from smol_config import mapping_to_yaml, merge_files
from smol_train.callbacks.alerts import Alerts
from smol_train.sections.watch import AlertsConfig

SETTINGS = ["watchdog.minutes=10", "watchdog.first_step_minutes=20", "watchdog.pause_minutes=15"]


class Queue(Slurm):
    """Slurm, as the test says."""

    def __init__(self) -> None:
        self.queue: list[Job] | None = []
        self.refusal: str | None = None
        self.asked: list[str] = []

    def jobs(self) -> list[Job] | None:
        return self.queue

    def last_state(self, job: str) -> str | None:
        return "NODE_FAIL"

    def requeue(self, job: str) -> str | None:
        self.asked.append(f"requeue {job}")
        return self.refusal

    def cancel(self, job: str) -> str | None:
        self.asked.append(f"cancel {job}")
        return None

    def has(self, *states: str) -> None:
        """Jobs 7, 8, .. of the run in these states, among others."""
        jobs = [Job(str(7 + at), "pretrain-run-c", state, "Priority", "n[1-2]", "1:00:00") for at, state in enumerate(states)]
        self.queue = [Job("1", "another", "RUNNING", "None", "n3", "5:00"), *jobs]


class Watched:
    """A run of which a test tells the story while a watcher looks."""

    def __init__(self, run: Path) -> None:
        self.story, self.slurm = Story(run), Queue()
        self.run = run
        submission(run, "c", "pretrain", "8")
        self.configure()
        self.slurm.has("RUNNING")
        self.start_watcher()

    def configure(self, *settings: str) -> None:
        config = merge_files(QUICKSTART, [*SETTINGS, f"train.output_dir={self.run}", *settings])
        (self.run / "slurm" / "code" / "c" / "submission" / "config.yaml").write_text(mapping_to_yaml(config))

    def start_watcher(self) -> None:
        self.watcher = Watcher(self.run, self.slurm, Alerts(AlertsConfig(), self.run, is_main=True))

    def look(self, *moments: float) -> list[tuple[str, str]]:
        """Look at these times; returns all alerts so far."""
        for moment in moments:
            self.watcher.look(T0 + moment)
        path = self.run / "alerts.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [(line["event"], line["text"]) for line in lines]

    def heartbeat(self, at: float, phase: str, step: int = 5, rank: int = 0) -> None:
        (self.run / "heartbeat").mkdir(exist_ok=True)
        path = self.run / "heartbeat" / f"rank_{rank}.json"
        path.unlink(missing_ok=True)
        self.story.line(f"heartbeat/rank_{rank}.json", at, rank=rank, step=step, phase=phase)

    def logbook(self) -> str:
        return (self.run / "slurm" / "logbook.md").read_text()


def checkpoint(run: Path, step: int, size: int, at: float = 0.0) -> None:
    folder = run / f"iter_{step:07d}"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * size)
    (folder / "COMPLETE").touch()
    os.utime(folder / "COMPLETE", (T0 + at, T0 + at))
