"""The jobs that evaluate checkpoints, in Slurm and in RUN/slurm/evaluations.jsonl: a line before each sbatch, one after it.

submitting   sbatch was about to be called; without a line after it, Slurm is asked for a job of that name
submitted    it has this number
failed       it ended and left no result
"""

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conversion import ConversionError
from conversion.export_records import export_name
from conversion.service import say
from conversion.watching import append_line, read_lines
from slurm.scheduler import Slurm

SETTLE_SECONDS = 60.0
"""After a submission whose outcome is not known, before Slurm's word counts that there is no such job: a request may still be
on its way when its sender is killed."""
SBATCH_SECONDS = 120.0
LOST = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""How a job ends that had no fault in it, where Slurm does not put it back into the queue."""


@dataclass(frozen=True)
class Evaluation:
    """Of one exported checkpoint."""

    run: Path
    step: int
    checkpoint: str
    """Its digest; empty where it is not known."""

    @property
    def key(self) -> str:
        return f"{export_name(self.step)}-{self.checkpoint[:8]}".rstrip("-")

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.run / "hf" / export_name(self.step)

    @property
    def result(self) -> Path:
        """There when the evaluation is done."""
        return self.run / "evaluations" / f"{self.key}.json"

    @property
    def job_name(self) -> str:
        return f"evaluate-{self.run.name}-{self.key}"


@dataclass
class Noted:
    """The latest line about an evaluation."""

    event: Literal["submitting", "submitted", "failed"]
    time: float
    """Seconds since 1970."""
    job: str = ""
    reason: str = ""


class EvaluationJobs:
    """Of one run; for whoever holds the lock."""

    def __init__(self, run: Path) -> None:
        self.run, self.slurm = run, Slurm()
        self._path = run / "slurm" / "evaluations.jsonl"
        self._noted: dict[str, Noted] = {}
        """By key."""
        for line in read_lines(self._path):
            key = line.pop("key")
            self._noted[key] = Noted(**line)

    def is_to_be_submitted(self, evaluation: Evaluation) -> bool:
        return not evaluation.result.exists() and evaluation.key not in self._noted

    def is_over(self, evaluation: Evaluation) -> bool:
        """Whether there will be nothing new about it."""
        noted = self._noted.get(evaluation.key)
        return evaluation.result.exists() or bool(noted and noted.event == "failed")

    def failed(self) -> list[str]:
        """A sentence for each that failed, unless its result came after all."""
        failed = {key: noted.reason for key, noted in self._noted.items() if noted.event == "failed"}
        return [f"{key}: {why}" for key, why in failed.items() if not (self.run / "evaluations" / f"{key}.json").exists()]

    def forget_failures(self) -> None:
        """Have what failed submitted again."""
        self._noted = {key: noted for key, noted in self._noted.items() if noted.event != "failed"}

    def submit(self, evaluation: Evaluation) -> str:
        """Submit it; returns the job's number. Raises ConversionError when Slurm does not take it, or does not answer."""
        self._note(evaluation, "submitting")
        # What Slurm has set for this job is not for that one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        if "SLURM_CONF" in os.environ:
            environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
        try:
            done = subprocess.run(
                sbatch_command(evaluation), env=environment, capture_output=True, text=True, timeout=SBATCH_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConversionError(f"sbatch does not answer ({error})") from error
        if done.returncode:
            raise ConversionError(f"sbatch: {' '.join(done.stderr.split())}; mend SMOL_EVALUATE_SBATCH if that is at fault")
        job = done.stdout.strip().partition(";")[0]
        self._note(evaluation, "submitted", job)
        return job

    def update(self, evaluations: Sequence[Evaluation]) -> None:
        """Look after what was submitted: find the number of a job that is not noted, and see which ended without a result."""
        open_ones = [(one, self._noted[one.key]) for one in evaluations if one.key in self._noted and not self.is_over(one)]
        jobs = self.slurm.jobs() if open_ones else None
        if jobs is None:  # Slurm does not tell
            return
        numbers = {job.name: job.id for job in jobs}
        for evaluation, noted in open_ones:
            if evaluation.result.exists():  # it ended while Slurm was asked
                continue
            if noted.event == "submitting":
                if job := numbers.get(evaluation.job_name):
                    say(f"job {job} evaluates {evaluation.model}, as was found out")
                    self._note(evaluation, "submitted", job)
                elif time.time() - noted.time > SETTLE_SECONDS:
                    del self._noted[evaluation.key]
            elif noted.job not in {job.id for job in jobs}:
                self._ended(evaluation, noted.job)

    def _ended(self, evaluation: Evaluation, job: str) -> None:
        """Without a result, as far as can be seen from here; one that comes after all counts."""
        state = self.slurm.last_state(job) or "unknown state"
        if state in LOST:
            say(f"job {job}, which evaluated {evaluation.model}, was lost ({state}); it is submitted again")
            del self._noted[evaluation.key]
            return
        reason = f"job {job} ended ({state}) without a result; see {log_of(evaluation, job)}"
        say(f"{evaluation.model} is NOT evaluated, and not tried again without --retry-failed: {reason}")
        self._note(evaluation, "failed", job, reason)

    def _note(self, evaluation: Evaluation, event: Literal["submitting", "submitted", "failed"], *told: str) -> None:
        noted = Noted(event, time.time(), *told)
        append_line(self._path, {"key": evaluation.key, **vars(noted)})
        self._noted[evaluation.key] = noted


def log_of(evaluation: Evaluation, job: str) -> Path:
    """Where a job's output is."""
    return evaluation.run / "slurm" / "logs" / f"evaluate-{evaluation.key}-{job}.log"


def sbatch_command(evaluation: Evaluation) -> list[str]:
    """With the settings of env.sh, which the job has in its environment."""
    return [
        "sbatch",
        "--parsable",
        f"--job-name={evaluation.job_name}",
        f"--output={log_of(evaluation, '%j')}",
        "--export=ALL",
        "--nodes=1",
        "--requeue",  # when something more urgent takes its node
        *([f"--account={account}"] if (account := os.environ.get("SMOL_ACCOUNT")) else []),
        *shlex.split(os.environ.get("SMOL_EVALUATE_SBATCH", "")),
        str(Path(os.environ["SMOL_CODE"]) / "slurm" / "evaluate_step.sh"),
        str(evaluation.model),
        str(evaluation.result),
    ]
