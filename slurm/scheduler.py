"""What Slurm says of a run's jobs: the one place in which Python asks it, for the watcher, the status page and others.

    RUN/slurm/code/STAMP/submission/sbatch.options   -> submissions(run): JOB-RUNNAME-STAMP is the name of all its jobs
    squeue                                           -> Slurm().jobs(): what waits and runs now, by that name
    sacct, or sacct -c where there is no database    -> Slurm().last_state(): how a job ended that is not in the queue

A controller that does not answer, or commands that are not installed, are an answer too: None, "not known". Nobody ends for it.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ANSWER_SECONDS = 60.0
"""How long a command may take; squeue itself asks again while the controller fails over."""


@dataclass(frozen=True)
class Submission:
    """One submit.sh: all jobs with its name run its copy of the code."""

    chain: str
    """Its stamp, as starts.jsonl has it."""
    name: str
    """The name of its jobs in Slurm."""
    job: str
    """The file of slurm/jobs/, such as pretrain."""
    trains: bool
    """Checkpoints of the run are its progress; a job with run_ranks of its own, such as a rehearsal, trains elsewhere."""
    gpus_per_node: int
    folder: Path
    """RUN/slurm/code/STAMP/submission."""

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"


@dataclass(frozen=True)
class Job:
    """A job in the queue."""

    id: str
    name: str
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits; None: it does not."""
    nodes: str
    """As Slurm abbreviates them: n[1-2]."""
    left: str
    """Until its time limit, as [days-]hours:minutes:seconds."""


# --- on disk ---------------------------------------------------------------------------------------------------------------


def submissions(run: Path) -> list[Submission]:
    """Of a run's folder, oldest first."""
    found = []
    for options in sorted((run / "slurm" / "code").glob("*/submission/sbatch.options")):
        given = dict(line.partition("=")[::2] for line in options.read_text(encoding="utf8").splitlines())
        chain, name = options.parents[1].name, given.get("--job-name", "")
        job = name.removesuffix(f"-{chain}").removesuffix(f"-{run.name}")
        file = options.parents[1] / "slurm" / "jobs" / f"{job}.sh"
        text = file.read_text(encoding="utf8") if file.is_file() else ""
        trains = re.search(r"^job_trains=yes", text, re.M) and not re.search(r"^run_ranks\(\)", text, re.M)
        gpus = given.get("--gpus-per-node", "0").rpartition(":")[2]
        count = int(gpus) if gpus.isdecimal() else 0
        found.append(Submission(chain, name, job, bool(trains), count, options.parent))
    return found


def training(found: list[Submission]) -> Submission | None:
    """The newest submission that trains."""
    return next((one for one in reversed(found) if one.trains), None)


# --- in Slurm --------------------------------------------------------------------------------------------------------------


class Slurm:
    """Asks the cluster that this host belongs to."""

    def jobs(self) -> list[Job] | None:
        """All that wait or run, oldest first; None: not known."""
        shown = _answer("squeue", "--noheader", "--sort=i", "--format=%i|%j|%T|%r|%N|%L")
        if shown is None:
            return None
        rows = [line.split("|") for line in shown.splitlines()]
        return [Job(*map(str.strip, row)) for row in rows if len(row) == 6]

    def last_state(self, job: str) -> str | None:
        """How a job ended that is not in the queue any more, such as NODE_FAIL; None: not known."""
        for command in (["sacct", "--allocations"], ["sacct", "--completion"]):
            shown = _answer(*command, "--noheader", "--parsable2", f"--jobs={job}", "--format=JobID,State")
            # One line for each time it ended: requeued jobs have several.
            states = [line.split("|")[1] for line in (shown or "").splitlines() if line.split("|")[0] == job]
            if states:
                return states[-1].split()[0]
        return None

    def requeue(self, job: str) -> str | None:
        """Ends the job and puts it back into the queue; returns why Slurm does not, or None."""
        return _refusal("scontrol", "requeue", job)

    def cancel(self, job: str) -> str | None:
        """Ends the job for good; returns why Slurm does not, or None."""
        return _refusal("scancel", job)


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _answer(*command: str) -> str | None:
    done = _run(*command)
    return done.stdout if done and done.returncode == 0 else None


def _refusal(*command: str) -> str | None:
    done = _run(*command)
    if done is None:
        return f"{command[0]} does not answer"
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"
