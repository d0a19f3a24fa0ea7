"""A recipe of post-training on a real Slurm: two nodes, killed, signalled, gone on with."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_kit import metrics, without_times, write_config
from safetensors.numpy import load_file
from slurm_cluster import Cluster, Submitter, wait_until

from slurm.starts import newest_step, read_starts

pytestmark = pytest.mark.slow

STEPS = 60


def configuration(folder: Path, model: Path) -> Path:
    changes: dict[str, Any] = {"data": {"packing": False}, "train": {"steps": STEPS, "global_batch_size": 4}}
    return write_config(folder, "sft", model, {**changes, "checkpoint": {"every_steps": 10, "keep_last": 2}})


def undisturbed(folder: Path, model: Path) -> Path:
    """The same on two processes without Slurm."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "post_training", "sft", "--config", str(configuration(folder, model))]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "run"


def test_a_recipe_that_is_killed_and_signalled_ends_as_if_nothing_had_been(
    cluster: Cluster, submit: Submitter, chat_folder: Path, tmp_path: Path
) -> None:
    submit.config, submit.overrides = configuration(tmp_path, chat_folder), []
    submit.settings |= {"SMOL_LOCAL_DATA": str(tmp_path / "disk"), "DATA_ROOT": str(tmp_path)}  # not for its data
    job = submit.job("post_training", "sft")
    [code] = (submit.run / "slurm" / "code").iterdir()

    def trained_since(start: int) -> bool:
        begun = read_starts(submit.run, code.name)
        return len(begun) == start and newest_step(submit.run) > begun[-1].checkpoint

    wait_until(lambda: trained_since(1), "the first start saves nothing")
    outcome = cluster.run("bash", cluster.repository / "slurm" / "faults.sh", "--yes", "kill-rank", submit.run)
    assert outcome.code == 0, outcome
    wait_until(lambda: trained_since(2), f"the second start saves nothing: {submit.log()}")
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@SECONDS sends
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert [start.reason for start in read_starts(submit.run, code.name)] == ["crash", "time limit", "done"], submit.log()

    whole = undisturbed(tmp_path / "whole", chat_folder)
    assert without_times(metrics(submit.run)) == without_times(metrics(whole))
    weights, expected = (load_file(run / f"hf/step_{STEPS}/model.safetensors") for run in (submit.run, whole))
    assert all((weights[name] == expected[name]).all() for name in expected)


def test_what_the_configuration_must_mend_is_not_started_again(
    cluster: Cluster, submit: Submitter, chat_folder: Path, tmp_path: Path
) -> None:
    submit.config, submit.overrides = configuration(tmp_path, chat_folder), []
    (tmp_path / "sums.jsonl").write_text('{"messages": [{"role": "user", "content": "Why?"}]}\n')
    job = submit.job("post_training", "sft")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert "error: the data is not fit to train on" in submit.log()
    assert len(submit.log().split("start 1 of chain")) == 2 and "start 2 of chain" not in submit.log()
