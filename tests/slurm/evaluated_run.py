"""A run whose checkpoints are exported and evaluated, with a stand-in for sbatch; what an evaluation leaves."""

import json
import os
from pathlib import Path

import pytest
from save_jobs import note_upload
from slurm_cluster import fake_program
from tiny_runs import QUICKSTART

from conversion.export_records import Records
from evaluation import scalars
from slurm import evaluations
from slurm.scheduler import Job, Slurm
from smol_train.checkpoint_folder import MARKER, STATE, digest_of, folder_name


def tell(run: Path, event: str) -> None:
    (run / "alerts.jsonl").write_text(json.dumps({"event": event}) + "\n")


def export(run: Path, step: int, uploaded: bool = True, content: str = "") -> Path:
    """A checkpoint that was exported; returns the Hugging Face folder."""
    checkpoint, hf = run / folder_name(step), run / "hf" / f"step_{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    hf.mkdir(parents=True, exist_ok=True)
    (checkpoint / STATE).write_text("{}")
    (checkpoint / MARKER).write_text(f"{step}{content}")
    Records(run / "hf").add("exporting", step, checkpoint=digest_of(checkpoint), revision="main")
    if uploaded:
        note_upload(checkpoint)
    return hf


def points(run: Path, below: str = "evaluations") -> list[scalars.Point]:
    """What TensorBoard would draw of RUN/tensorboard/BELOW, a point that was written twice twice."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = (run / "tensorboard" / below).glob("events.out.tfevents.*")
    events = [event for path in files for event in LegacyEventFileLoader(str(path)).Load()]
    return sorted((event.step, value.tag, value.simple_value) for event in events for value in event.summary.value)


def result(run: Path, step: int, text: str) -> Path:
    """What an evaluation leaves."""
    path = run / "evaluations" / f"step_{step}-{(digest_of(run / folder_name(step)) or '')[:8]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


class Queue:
    """Stands in for Slurm: sbatch gives numbers from 1, and what is in the queue is told by the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.refuses = folder / "sbatch.calls", folder / "sbatch.refuses"
        self.queue: list[Job] | None = []
        self.states: dict[str, str] = {}
        fake_program(
            folder,
            "sbatch",
            f"[ ! -e {self.refuses} ] || {{ echo no partition >&2; exit 1; }}\n"
            f'echo "$@" >>{self.calls}\nenv >{folder}/environment\nwc -l <{self.calls}',
        )
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("SMOL_CODE", "/code")
        monkeypatch.setenv("SMOL_EVALUATE_SBATCH", "--partition=low --time=10")
        monkeypatch.setenv("SMOL_ACCOUNT", "lab")
        monkeypatch.setattr(Slurm, "jobs", lambda _: self.queue)
        monkeypatch.setattr(Slurm, "last_state", lambda _, job: self.states.get(job))

    @property
    def submitted(self) -> list[str]:
        """Models of the jobs."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [Path(line.split()[-2]).name for line in lines]

    def runs(self, *numbers: str) -> None:
        self.queue = [Job(number, "", "RUNNING", "", "n1", "1:00") for number in numbers]


def evaluate(run: Path, *options: str, uploads: bool = True) -> int:
    settings = [f"train.output_dir={run}", *(["checkpoint.upload=s3://bucket/runs"] if uploads else [])]
    return evaluations.main([str(QUICKSTART), *options, *settings])
