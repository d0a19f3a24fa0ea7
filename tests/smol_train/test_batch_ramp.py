"""A batch-size ramp on real ranks: which samples each step takes, its learning rate, and resuming inside it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
from ranks import RankError, Ranks
from tiny_runs import tiny_overrides

RAMP = "train.batch_ramp=[{until_step: 4, global_batch_size: 4}]"  # then 8; micro-batches of 2 on 2 ranks: 1 each, then 2


@pytest.fixture(scope="module")
def settings(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ramp") / "run"
    constant = ["optim.schedule.decay_steps=0", "optim.schedule.batch_rule=sqrt"]
    return [*tiny_overrides(corpus, folder), *constant, "checkpoint.every_steps=3", "checkpoint.keep_last=9", RAMP]


@pytest.fixture(scope="module")
def whole(ranks: Ranks, settings: list[str]) -> dict[str, Any]:
    """The run without interruption, saved after steps 3, 6, 9 and 10."""
    return ranks.run(jobs.train, 2, overrides=settings, save=True)[0]


def resumed(ranks: Ranks, settings: list[str], tmp_path: Path, *changes: str, world: int = 2) -> tuple[dict, dict]:
    """Rank 0's result of going on after step 3, and the state it ended with."""
    [output] = [Path(setting.split("=")[1]) for setting in settings if setting.startswith("train.output_dir")]
    run = tmp_path / "resumed"
    shutil.copytree(output / "iter_0000003", run / "iter_0000003")
    result = ranks.run(jobs.train, world, overrides=[*settings, f"train.output_dir={run}", *changes], save=True)[0]
    return result, json.loads((run / "iter_0000010" / "state.json").read_text())


def test_batches_and_rates_follow_the_ramp(whole: dict[str, Any]) -> None:
    steps = whole["steps"]
    assert [step["train/global_batch_size"] for step in steps] == [4] * 4 + [8] * 6
    peak = steps[-1]["train/learning_rate"]
    assert [step["train/learning_rate"] / peak for step in steps] == pytest.approx([0.5**1.5] + [0.5**0.5] * 3 + [1.0] * 6)
    assert math.isfinite(sum(whole["loss"]))


def test_a_run_stopped_inside_the_ramp_goes_on_with_the_same_samples(
    ranks: Ranks, settings: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    result, state = resumed(ranks, settings, tmp_path)
    assert result["start"] == 3
    assert result["steps"] == whole["steps"][3:]  # losses, norms, targets, rates and batches, bit for bit
    assert result["weights"] == whole["weights"]
    history = [(s["stage"], s["first_step"], s["steps"], s["first_sample"], s["batch_size"]) for s in state["data"]["history"]]
    assert history == [("stable", 0, 4, 0, 4), ("stable", 4, 2, 16, 8), ("decay", 6, 4, 32, 8)]
    assert (state["samples"], state["tokens"]) == (64, 64 * 64)


def test_the_ramp_may_change_ahead_on_another_number_of_ranks(
    ranks: Ranks, settings: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    longer = RAMP.replace("4,", "5,", 1)
    result, state = resumed(ranks, settings, tmp_path, longer, world=1)
    assert [step["train/global_batch_size"] for step in result["steps"]] == [4] * 2 + [8] * 5
    assert result["loss"][0] == pytest.approx(whole["loss"][3], abs=2e-6)
    assert state["samples"] == 60


def test_the_ramp_may_not_change_behind_and_must_divide_over_the_ranks(
    ranks: Ranks, settings: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    changed = RAMP.replace("global_batch_size: 4", "global_batch_size: 2")
    with pytest.raises(RankError, match="takes 2 samples in steps 0 to 3, but this run has trained steps 0 to 2 with 4"):
        resumed(ranks, settings, tmp_path, changed, world=1)
    with pytest.raises(RankError, match=r"global_batch_size=4 \(stage 'stable', step 0\) is not a multiple of .* x 4 data"):
        ranks.run(jobs.train, 4, overrides=[*settings, f"train.output_dir={tmp_path / 'new'}"])
