"""N steps equal N/2 steps, a kill -9 and a resume: bit for bit, losses and weights, through the real command."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jobs
import psutil
import pytest
from ranks import Ranks
from tiny_runs import QUICKSTART, REPOSITORY, tiny_overrides

import pretrain_smol
from smol_train.checkpoint_folder import MARKER


def start(overrides: list[str], processes: int) -> subprocess.Popen[str]:
    """One process starts as it is, several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "pretrain_smol.py", "--config", "configs/quickstart.yaml", *overrides]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_to_end(overrides: list[str], processes: int) -> str:
    process = start(overrides, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when_saved(overrides: list[str], processes: int, folder: Path) -> None:
    """kill -9 the launcher and all its ranks once the checkpoint is whole and a further step is written."""
    process = start(overrides, processes)
    metrics = folder.parent / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (folder / MARKER).exists() or f'"step": {int(folder.name[5:]) + 1},' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not save in time"
        time.sleep(0.02)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:  # torchrun's ranks have sessions of their own, so killing a process group would miss them
        member.kill()
    psutil.wait_procs(family, timeout=30)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learned(run: Path) -> list[tuple]:
    return [(line["step"], line["tokens"], line["train/loss"], line["train/grad_norm"]) for line in lines(run)]


@pytest.mark.parametrize(("precision", "processes"), [("bf16", 2), ("fp32", 1)])
def test_a_killed_run_resumes_bit_for_bit(precision: str, processes: int, corpus: Path, tmp_path: Path, ranks: Ranks) -> None:
    settings = [f"train.precision={precision}", "checkpoint.every_steps=20", "checkpoint.keep_last=9"]
    settings += ["data.stages.0.steps=36", "data.stages.1.steps=4"]  # the kill falls into the first stage
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = {"config_path": str(QUICKSTART), "overrides": [*tiny_overrides(corpus, whole), *settings]}
    assert ranks.run(pretrain_smol.train, processes, **arguments) == [0] * processes
    kill_when_saved([*tiny_overrides(corpus, killed), *settings], processes, killed / "iter_0000020")
    last_before = lines(killed)[-1]["step"]
    assert 20 < last_before < 36, f"the kill came at step {last_before}, which proves nothing"

    output = run_to_end([*tiny_overrides(corpus, killed), *settings], processes)

    assert "resumed from" in output and "step 20" in output
    assert learned(killed) == learned(whole)
    for step in (36, 40):
        assert weights(ranks, killed / f"iter_{step:07d}") == weights(ranks, whole / f"iter_{step:07d}")


def weights(ranks: Ranks, folder: Path) -> dict[str, str]:
    [digests] = ranks.run(jobs.stored_weight_digests, 1, folder=folder)
    return digests


def test_a_finished_run_started_again_trains_no_further_step(ranks: Ranks, overrides: list[str]) -> None:
    [first] = ranks.run(jobs.train, 1, overrides=overrides, save=True)
    [again] = ranks.run(jobs.train, 1, overrides=overrides, save=True)
    assert again["start"] == 10 and again["loss"] == []
    assert again["weights"] == first["weights"]


def test_a_finished_run_goes_on_where_it_stopped_when_lengthened(ranks: Ranks, overrides: list[str]) -> None:
    stable = [*overrides, "optim.schedule.kind=constant", "optim.schedule.decay_steps=0"]
    [whole] = ranks.run(jobs.train, 1, overrides=[*stable, "data.stages.1.steps=8", "train.output_dir=none"])
    ranks.run(jobs.train, 1, overrides=stable, save=True)
    [longer] = ranks.run(jobs.train, 1, overrides=[*stable, "data.stages.1.steps=8"], save=True)
    assert longer["start"] == 10
    assert longer["loss"] == whole["loss"][10:]
    assert longer["weights"] == whole["weights"]
