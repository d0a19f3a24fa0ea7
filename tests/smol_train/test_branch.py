"""Longer than planned, or another end: runs that go on from a checkpoint equal runs that were planned so from the beginning."""

import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
from ranks import RankError, Ranks
from tiny_runs import tiny_overrides

MIXED, DOCS = "{code: 0.75, docs: 0.25}", "{docs: 1}"
BRANCHED = (
    f"data.stages=[{{name: stable, steps: 6, weights: {MIXED}}}, {{name: anneal, steps: 4, keep: 0.2, weights: {DOCS}}}]",
    "optim.schedule.decay_steps=4",
)
EXTENDED = (f"data.stages=[{{name: stable, steps: 14, weights: {MIXED}}}]", "optim.schedule.decay_steps=4")


def settings(corpus: Path, folder: Path, *changes: str) -> list[str]:
    """A run of one stage of 10 steps at the peak rate, saved after step 6."""
    stable = f"data.stages=[{{name: stable, steps: 10, weights: {MIXED}}}]"
    lengths = ["data.stages.0.steps", "data.stages.1.steps"]
    tiny = [setting for setting in tiny_overrides(corpus, folder) if setting.split("=")[0] not in lengths]
    return [*tiny, stable, "optim.schedule.decay_steps=0", "checkpoint.every_steps=6", "checkpoint.keep_last=9", *changes]


@pytest.fixture(scope="module")
def run(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run's folder and what it did."""
    folder = tmp_path_factory.mktemp("stable") / "run"
    return folder, ranks.run(jobs.train, 1, overrides=settings(corpus, folder), save=True)[0]


def from_the_beginning(ranks: Ranks, corpus: Path, folder: Path, changes: tuple[str, ...]) -> dict[str, Any]:
    return ranks.run(jobs.train, 1, overrides=settings(corpus, folder / "whole", *changes))[0]


def test_a_decay_branched_off_equals_a_run_planned_with_it(
    ranks: Ranks, corpus: Path, run: tuple[Path, dict], tmp_path: Path
) -> None:
    whole = from_the_beginning(ranks, corpus, tmp_path, BRANCHED)
    start = f"start_from={{checkpoint: {run[0] / 'iter_0000006'}, optimizer: true, data_position: true}}"
    [branch] = ranks.run(jobs.train, 1, overrides=settings(corpus, tmp_path / "branch", start, *BRANCHED))
    assert branch["start"] == 6
    assert branch["steps"] == whole["steps"][6:]  # losses, norms, targets and rates: the same samples, bit for bit
    assert branch["weights"] == whole["weights"]
    peak = run[1]["steps"][-1]["train/learning_rate"]
    assert [step["train/learning_rate"] / peak for step in branch["steps"]] == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert branch["loss"][0] != run[1]["loss"][6], "the same weights, another mixture"


def test_a_run_made_longer_before_its_decay_equals_one_planned_so(
    ranks: Ranks, corpus: Path, run: tuple[Path, dict], tmp_path: Path
) -> None:
    whole = from_the_beginning(ranks, corpus, tmp_path, EXTENDED)
    shutil.copytree(run[0] / "iter_0000006", tmp_path / "longer" / "iter_0000006")
    [longer] = ranks.run(jobs.train, 1, overrides=settings(corpus, tmp_path / "longer", *EXTENDED))
    assert (longer["start"], len(longer["steps"])) == (6, 8)
    assert longer["steps"] == whole["steps"][6:] and longer["weights"] == whole["weights"]
    peak = run[1]["steps"][-1]["train/learning_rate"]
    rates = [step["train/learning_rate"] / peak for step in longer["steps"]]
    assert rates == pytest.approx([1.0] * 4 + [0.75, 0.5, 0.25, 0.0])


def test_a_branch_that_does_not_repeat_the_past_is_refused(
    ranks: Ranks, corpus: Path, run: tuple[Path, dict], tmp_path: Path
) -> None:
    start = f"start_from={{checkpoint: {run[0] / 'iter_0000006'}, optimizer: true, data_position: true}}"
    for changed, message in (
        ((BRANCHED[0].replace("code: 0.75", "code: 0.5"), BRANCHED[1]), "'stable' has weights .* trained it with"),
        (("data.seed=7",), "data.seed is 7, but the checkpoint was trained with 6"),
        (("data.sequence_length=32",), "data.sequence_length is 32, but the checkpoint was trained with 64"),
        (("model.hidden_size=32",), "holds another architecture .model.hidden_size: checkpoint 64, config 32"),
    ):
        with pytest.raises(RankError, match=message):
            ranks.run(jobs.train, 1, overrides=settings(corpus, tmp_path / "refused", start, *changed))
