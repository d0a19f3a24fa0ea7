"""`tokenize` on Slurm and Ray: the same bytes as on this machine, and options checked. What is not installed is skipped."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from document_files import Tool, contents, write_documents
from tokenized import TEXTS

from data_tools import executors


@pytest.fixture(scope="module")
def partition() -> str:
    """A partition of the Slurm cluster that answers here."""
    asked = subprocess.run("sinfo --noheader -o %R", shell=True, capture_output=True, text=True, timeout=20, check=False)
    if asked.returncode:
        pytest.skip("no Slurm cluster answers (sinfo)")
    return asked.stdout.split()[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for index in range(3):
        write_documents(tmp_path / "in" / f"{index}.jsonl", [f"{text} {index}" for text in TEXTS])
    return tmp_path / "in"


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def queue(*options: str) -> str:
    """What squeue has to say, without its header."""
    return subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_slurm_jobs_write_the_same_bytes(partition: str, tool: Tool, tokenizer: Path, source: Path, tmp_path: Path) -> None:
    command = ["tokenize", source, "--tokenizer", tokenizer, "--tasks", 3]
    slurm = ["--executor", "slurm", "--slurm", f"partition={partition},time=10,mem=1"]
    outcome = tool(*command, tmp_path / "slurm", *slurm)
    assert outcome.code == 0, outcome
    assert "submitted: Slurm jobs " in outcome.out
    again = tool(*command, tmp_path / "slurm", *slurm, "--fresh")
    assert again.code == 2
    assert f"{tmp_path / 'slurm'} is being written by Slurm jobs " in again.err
    assert tool(*command, tmp_path / "local", "--workers", 1).code == 0
    wait_for((tmp_path / "slurm" / "manifest.json").exists)
    assert contents(tmp_path / "slurm") == contents(tmp_path / "local")


@pytest.mark.slow
def test_cancelled_slurm_jobs_are_gone_on_with(
    partition: str, tool: Tool, tokenizer: Path, source: Path, tmp_path: Path
) -> None:
    command = ["tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--tasks", 3, "--executor", "slurm", "--slurm"]
    outcome = tool(*command, f"partition={partition},time=10,mem=1", "--workers", 1)
    jobs = outcome.out.split("jobs ")[1].split(" ")[0::3][:2]
    wait_for(lambda: any((tmp_path / ".out.partial" / "parts").glob("*.json")))
    subprocess.run(["scancel", jobs[0]], check=True)
    wait_for(lambda: not queue("--jobs", ",".join(jobs)))
    assert not (tmp_path / "out").exists()
    assert tool(*command, f"partition={partition},time=10,mem=1").code == 0
    wait_for((tmp_path / "out" / "manifest.json").exists)
    assert len(list((tmp_path / "out").glob("*.ds"))) == 3


@pytest.mark.slow
def test_ray_tasks_write_the_same_bytes(tool: Tool, tokenizer: Path, source: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    command = ["tokenize", source, "--tokenizer", tokenizer, "--tasks", 3]
    assert tool(*command, tmp_path / "local", "--workers", 1).code == 0
    try:
        assert tool(*command, tmp_path / "ray", "--executor", "ray").code == 0
        (source / "1.jsonl").write_text("{")
        outcome = tool(*command, tmp_path / "bad", "--executor", "ray")
    finally:
        ray.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert outcome.code == 2
    assert "part 00001 of " in outcome.err
    assert "is not finished (" in outcome.err
    assert "1.jsonl, record 1: not valid JSON" in outcome.err


def test_ray_that_is_not_installed_is_one_sentence(
    tool: Tool, tokenizer: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--executor", "ray")
    assert outcome.code == 2
    assert "--executor ray needs the package ray, which is not installed; run `pip install ray`" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--slurm names no partition and no time; write --slurm partition=cpu,time=20:00:00"),
        ("partition=cpu", "--slurm names no time"),
        ("partition=cpu,time", "'time' is not of the form key=value"),
        ("partition=cpu,time=1,memory=2", "--slurm memory=2: unknown option; "),
        ("partition=cpu,time=1,cpus=two", "--slurm cpus=two is not a whole number of at least 1"),
        ("partition=cpu,time=1,mem=0", "--slurm mem=0 is not a whole number of at least 1"),
    ],
)
def test_bad_slurm_options_are_refused(
    options: str,
    message: str,
    tool: Tool,
    tokenizer: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(tmp_path)
    monkeypatch.setattr(executors, "which", lambda name: f"/usr/bin/{name}")
    command = ["tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--executor", "slurm", "--slurm", options]
    outcome = tool(*command)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [(None, "there is no sbatch here; run the command on a Slurm login node"), ("exit 1", "sbatch refused (its message")],
)
def test_without_slurm_nothing_is_left_behind(
    sbatch: str | None,
    message: str,
    tool: Tool,
    tokenizer: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    if sbatch:
        (commands / "sbatch").write_text(f"#!/bin/sh\n{sbatch}\n")
        (commands / "sbatch").chmod(0o755)
    folders = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "sbatch").exists()]
    monkeypatch.setenv("PATH", ":".join([str(commands), *folders]))
    slurm = ["--executor", "slurm", "--slurm", "partition=cpu,time=10"]
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, *slurm)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()
