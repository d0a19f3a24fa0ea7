"""The real trainer on a real Slurm, two nodes with a rank each: whatever ends a start, the run ends as if nothing had been."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import jobs
import pytest
from ranks import Ranks
from slurm_cluster import Cluster, Submitter, wait_until
from tiny_runs import tiny_overrides

from smol_train.checkpoint_folder import read_state, step_of, whole_checkpoints

pytestmark = pytest.mark.slow

STEPS = 240


def settings(corpus: Path, run: Path) -> list[str]:
    return [
        *tiny_overrides(corpus, run),
        f"data.stages.0.steps={STEPS - 40}",
        "data.stages.1.steps=40",
        "optim.schedule.decay_steps=40",
        "checkpoint.every_steps=24",
        "checkpoint.keep_last=20",
        "checkpoint.async_save=true",
        "spikes.sigma=50",  # the norms of so small a run jump
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(submit: Submitter, step: int) -> None:
    def reached() -> bool:
        told = lines(submit.run / "metrics.jsonl")
        return bool(told) and told[-1]["step"] >= step

    try:
        wait_until(reached, f"step {step} does not come")
    except AssertionError:
        pytest.fail(f"step {step} does not come\n{submit.log()}")


def newest(submit: Submitter) -> int:
    return step_of(whole_checkpoints(submit.run)[-1])


def test_time_limit_killed_rank_and_lost_node_change_nothing_in_the_run(
    cluster: Cluster, submit: Submitter, corpus: Path, tmp_path: Path, ranks: Ranks
) -> None:
    submit.overrides = settings(corpus, submit.run)
    job = submit.job("pretrain")

    wait_for_step(submit, 30)
    # As Slurm does before the time limit, whose minutes are too coarse here (test_slurm_requeue has real ones).
    assert cluster.run("scancel", "--batch", "--signal=USR1", job).code == 0
    submit.wait_for_log("restart 1, of")
    saved = read_state(whole_checkpoints(submit.run)[-1])
    assert saved.step >= 30 and saved.reason == "stop requested", "saved when it was asked, not only when it was due"

    wait_for_step(submit, saved.step + 30)
    os.kill(cluster.rank_process(job, 1), signal.SIGKILL)
    submit.wait_for_log("restart 2, of")
    after_kill = newest(submit)

    wait_for_step(submit, after_kill + 30)
    cluster.lab("node-kill", "n2")
    submit.wait_for_log("restart 3, of")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()

    assert json.loads((submit.run / "heartbeat" / "rank_1.json").read_text())["host"] == "n3", "as Slurm calls it"
    starts = lines(submit.run / "slurm" / "starts.jsonl")
    begun = [line for line in starts if line["event"] == "start"]
    assert [line["nodes"] for line in begun] == [["n1", "n2"]] * 3 + [["n1", "n3"]], "the spare takes the lost node's place"
    assert begun[1]["checkpoint"] == saved.step and begun[2]["checkpoint"] == after_kill
    reasons = [line["reason"] for line in starts if line["event"] == "end"]
    assert [reasons[0], reasons[1], reasons[-1]] == ["time limit", "crash", "done"]

    [reference, _] = ranks.run(jobs.train, 2, overrides=settings(corpus, tmp_path / "undisturbed"))
    disturbed = lines(submit.run / "metrics.jsonl")
    assert [line["step"] for line in disturbed] == list(range(1, STEPS + 1))
    assert [line["train/loss"] for line in disturbed] == reference["loss"], "bit for bit"
