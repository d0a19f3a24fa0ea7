"""Folders of runs made by hand, of which one can add up what they tell: starts, steps, alerts, submissions."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

T0 = 1_700_000_000


class Story:
    """Writes a run's folder; times are seconds after its beginning, a step takes 1 second."""

    def __init__(self, run: Path) -> None:
        self.run, self.chain, self.job = run, "c", "7"
        (run / "slurm").mkdir(parents=True)

    def line(self, file: str, at: float, **fields: Any) -> None:
        time = datetime.fromtimestamp(T0 + at, UTC).isoformat(timespec="milliseconds")
        with (self.run / file).open("a") as lines:
            lines.write(json.dumps({"time": time, **fields}) + "\n")

    def start(self, at: float, checkpoint: int = -1, nodes: str = "n1 n2") -> None:
        told = {"chain": self.chain, "job": self.job, "nodes": nodes.split(), "checkpoint": checkpoint, "suspects": 0}
        self.line("slurm/starts.jsonl", at, event="start", **told)

    def end(self, at: float, reason: str, following: str = "again", **more: Any) -> None:
        told = {"chain": self.chain, "job": self.job, "code": 1, "reason": reason, "next": following, **more}
        self.line("slurm/starts.jsonl", at, event="end", **told)

    def steps(self, at: float, first: int, last: int, lost: bool = False) -> None:
        """The first is done at `at`."""
        file = "metrics_lost.jsonl" if lost else "metrics.jsonl"
        for number in range(last - first + 1):
            self.line(file, at + number, step=first + number, **{"perf/step_seconds": 1.0})

    def alert(self, at: float, event: str) -> None:
        self.line("alerts.jsonl", at, event=event, text=event)


def submission(run: Path, chain: str, job: str, gpus: str, purpose: str = "main") -> None:
    folder = run / "slurm" / "code" / chain / "submission"
    folder.mkdir(parents=True)
    (folder / "sbatch.options").write_text(
        f"--job-name={job}-run-{chain}\n--nodes=2\n" + (f"--gpus-per-node={gpus}\n" * bool(gpus))
    )
    (folder / "config.yaml").write_text(f"train: {{purpose: {purpose}, output_dir: '${{RUN_ROOT}}/x'}}\n")
    (folder.parent / "slurm" / "jobs").mkdir(parents=True)
    trains = "# shellcheck\njob_trains=yes\n" if job == "pretrain" else ""
    (folder.parent / "slurm" / "jobs" / f"{job}.sh").write_text(f"#!/usr/bin/env bash\n{trains}")
