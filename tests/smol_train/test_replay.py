"""Replays: the run's samples again from another checkpoint, and what follows for data and state."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ranks import RankError, Ranks
from replay_jobs import command, replay_on_a_faulty_device, replay_with_poison, replay_without_a_shared_folder, spoil
from spike_jobs import train_with_poison
from tiny_runs import QUICKSTART, tiny_overrides

from data_tools.run_folder import load_begun_run
from data_tools.windows_seen import seen_windows
from smol_config import UserError, load
from smol_data.shards import open_datasets
from smol_train.checkpoint_folder import read_state
from smol_train.config import RunConfig
from smol_train.replay import main
from smol_train.replay_plan import Plan, ReplayedStep, conclude, plan, read_report

POISONED = (88, 120)
"""Four steps of 8 samples: steps 12 to 15. Three of them are spikes when the run goes back."""
SPIKES = (88, 112)
SETTINGS = [
    "data.stages.0.steps=24",
    "spikes.sigma=20",  # the norms of so small a run jump
    "spikes.window=16",
    "spikes.least_window=10",
    "spikes.rollback_after=3",
    "spikes.margin_steps=1",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=8",
]
JUDGING = "spikes.least_window=4"


@pytest.fixture(scope="module")
def overrides(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*tiny_overrides(corpus, tmp_path_factory.mktemp("replayed") / "run"), *SETTINGS]


@pytest.fixture(scope="module")
def run(ranks: Ranks, overrides: list[str]) -> Path:
    """A run of 24 + 4 steps that went back from step 14 to step 8 and passed samples 80 to 119 over."""
    [result] = ranks.run(train_with_poison, 1, overrides=overrides, poisoned=POISONED)
    assert result["code"] == 0 and result["skips"] == [(80, 120)]
    return folder(overrides)


def folder(overrides: list[str]) -> Path:
    setting = next(item for item in overrides if item.startswith("train.output_dir="))
    return Path(setting.removeprefix("train.output_dir="))


def files(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_samples_that_stand_out_from_two_checkpoints_are_bad_data(ranks: Ranks, overrides: list[str], run: Path) -> None:
    report, before = run / "spikes" / "step_0000014", files(run)
    results = {}
    for name in ("iter_0000008", "iter_0000004"):
        arguments = {"checkpoint": run / name, "samples": SPIKES, "poisoned": POISONED, "report": report}
        [results[name]] = ranks.run(replay_with_poison, 1, overrides=[*overrides, JUDGING], **arguments)
    assert files(run) == before, "the run's folder is only read"

    near, far = results.values()
    for result in (near, far):
        assert result["conclusion"]["kind"] == "data"
        assert [bool(step["reason"]) for step in result["steps"]][-3:] == [True] * 3
        assert all(step["updated"] and step["moved"] for step in result["watched"]), "nothing is left out"
        assert {step["samples"] for step in result["run"]} >= {(88, 96), (96, 104), (104, 112)}
    # From step 8 nothing lies between: up to and with the first spike the replay is the run, to the last bit.
    assert [step["samples"] for step in near["steps"]] == [(n, n + 8) for n in range(64, 112, 8)]
    seen = {tuple(step["samples"]): step["loss"] for step in near["run"]}
    assert [step["loss"] for step in near["steps"]][:4] == [seen[n, n + 8] for n in range(64, 96, 8)]
    # From step 4 a control of four steps, then the range.
    assert [step["samples"] for step in far["steps"]] == [(n, n + 8) for n in (*range(32, 64, 8), *range(88, 112, 8))]


def test_what_does_not_stand_out_again_was_the_state(ranks: Ranks, overrides: list[str], run: Path, tmp_path: Path) -> None:
    report = run / "spikes" / "step_0000014"
    arguments = {"checkpoint": run / "iter_0000008", "samples": SPIKES, "report": report}
    [result] = ranks.run(replay_with_poison, 1, overrides=[*overrides, JUDGING], **arguments)
    assert result["conclusion"]["kind"] == "state"  # without the poison: the run's spikes did not come from the samples

    good = {"checkpoint": run / "iter_0000012", "samples": (176, 184)}
    spoilt = {**good, "checkpoint": tmp_path / "spoilt" / "iter_0000012"}
    ranks.run(spoil, 1, overrides=overrides, checkpoint=good["checkpoint"], folder=tmp_path / "spoilt", factor=4.0)
    [from_good] = ranks.run(replay_with_poison, 1, overrides=overrides, **good)
    [from_spoilt] = ranks.run(replay_with_poison, 1, overrides=overrides, **spoilt)
    assert from_good["conclusion"]["kind"] == "nothing"
    assert from_spoilt["conclusion"]["kind"] == "state"
    assert "steps before the range stand out as well" in from_spoilt["conclusion"]["sentence"]


def test_the_samples_are_those_of_the_run_on_every_layout(ranks: Ranks, overrides: list[str], run: Path) -> None:
    """Batches 8 wide from sample 136 on, of which the run saved a checkpoint at 136 (step 12)."""
    begun = load_begun_run(run)
    data = begun.data_run.data
    datasets = open_datasets(data.datasets, data.sequence_length, data.tokenizer)
    wanted = [*range(136 + 16, 136 + 48)]
    windows = seen_windows(begun.segments, data.seed, datasets, wanted[0], wanted[-1] + 1)
    inspected = [seen.ids[:-1].tolist() for seen in windows]
    arguments = {"checkpoint": run / "iter_0000012", "samples": (wanted[0] + 3, wanted[-1])}
    assert read_state(arguments["checkpoint"]).samples == 136
    [alone] = ranks.run(replay_with_poison, 1, overrides=overrides, **arguments)
    assert alone["plan"]["samples"] == (wanted[0], wanted[-1] + 1), "widened to whole batches"
    assert alone["tokens"][-32:] == inspected
    far = {**arguments, "checkpoint": run / "iter_0000004", "samples": (wanted[0], wanted[-1] + 1)}
    both = ranks.run(replay_with_poison, 2, overrides=[*overrides, JUDGING], **far)
    assert both[0]["steps"] == both[1]["steps"]
    assert [step["samples"] for step in both[0]["steps"]][:5] == [*((n, n + 8) for n in range(32, 64, 8)), (152, 160)]
    mine, others = (result["tokens"][-16:] for result in both)
    assert sorted([*mine, *others]) == sorted(inspected)


def test_the_command_prints_and_writes_what_it_found_beside_what_the_run_saw(
    ranks: Ranks, overrides: list[str], run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(QUICKSTART), "--checkpoint", str(run / "iter_0000012"), "--samples", "152:176", *overrides]
    assert ranks.run(command, 1, arguments=[*arguments, "--json", str(tmp_path / "r.json")]) == [0]
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["conclusion"]["kind"] == "nothing"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["train/loss"]) for line in lines if 13 <= line["step"] <= 17]
    # The control and the range follow the checkpoint without a gap: the run again, step by step.
    assert [(step["step"], step["loss"]) for step in result["run"]] == logged
    assert [step["loss"] for step in result["steps"]] == [loss for _, loss in logged]

    arguments[arguments.index(str(run / "iter_0000012"))] = str(run / "iter_0000008")
    early = [*arguments, "spikes.least_window=16", "--json", str(tmp_path / "early.json")]
    assert ranks.run(command, 1, arguments=early) == [0]
    assert json.loads((tmp_path / "early.json").read_text())["conclusion"]["kind"] == "not judged"


# --- planning and concluding, without training -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "samples", "message"),
    [
        ("iter_0000012", (128, 144), "samples 128:144 begin before the checkpoint's position, sample 136"),
        ("iter_0000012", (216, 240), r"do not all belong to stage 'stable', .* end before 232; give samples of that stage"),
        ("iter_0000028", (300, 310), r"the checkpoint is the end of the run \(step 28\)"),
    ],
)
def test_samples_that_cannot_follow_the_checkpoint_are_refused(
    checkpoint: str, samples: tuple[int, int], message: str, overrides: list[str], run: Path
) -> None:
    config = load(RunConfig, QUICKSTART, overrides)
    with pytest.raises(UserError, match=message):
        plan(config, read_state(run / checkpoint), samples)


def test_bad_input_is_refused_with_the_remedy(
    overrides: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(QUICKSTART), "--checkpoint", str(run / "iter_0000008"), *overrides]
    assert main([*arguments, "--report", str(tmp_path)]) == 93
    assert "steps.json cannot be read as a spike's report (FileNotFoundError" in capsys.readouterr().err
    report = tmp_path / "step_0000014"
    shutil.copytree(run / "spikes" / "step_0000014", report)
    steps = json.loads((report / "steps.json").read_text())
    (report / "steps.json").write_text(json.dumps(steps[:-3]))
    assert main([*arguments, "--report", str(report)]) == 93
    assert "its last step is no spike; give --samples A:B" in capsys.readouterr().err
    assert main([*arguments, "--samples", "88:96", "--output", str(tmp_path / "absent")]) == 93
    assert "absent is no folder; make it first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--samples", "9:9"])
    assert "'9:9' is not a range; give A:B with A below B" in capsys.readouterr().err


def test_a_checkpoint_without_a_place_in_the_data_is_refused(
    ranks: Ranks, overrides: list[str], run: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "iter_0000008"
    shutil.copytree(run / "iter_0000008", weights)
    state = json.loads((weights / "state.json").read_text())
    (weights / "state.json").write_text(json.dumps({**state, "data": {}}))
    with pytest.raises(RankError, match="holds no optimizer or no data position"):
        ranks.run(replay_with_poison, 1, overrides=overrides, checkpoint=weights, samples=(88, 96))


def test_faults_of_the_machines_end_a_replay_with_the_remedy(ranks: Ranks, overrides: list[str], run: Path) -> None:
    arguments = {"overrides": overrides, "checkpoint": run / "iter_0000012", "samples": (136, 152)}
    with pytest.raises(RankError, match=r"cannot be judged: after step 13 .*suspected: .*; run it again on other devices"):
        ranks.run(replay_on_a_faulty_device, 1, **arguments, at_step=13)
    with pytest.raises(RankError, match=r"is not seen by 1 ranks; give --output on a file system of all nodes"):
        ranks.run(replay_without_a_shared_folder, 2, **arguments)


def step(first: int, reason: str = "", judged: bool = True) -> ReplayedStep:
    return ReplayedStep((first, first + 8), 2.0, 0.3, reason, judged)


PLANNED = Plan((80, 96), (64, 80), [])


@pytest.mark.parametrize(
    ("replayed", "seen", "kind"),
    [
        ([step(64), step(72), step(80, "loss"), step(88)], [], "data"),
        ([step(64), step(72, "norm"), step(80, "loss"), step(88)], [], "state"),
        ([step(64), step(72), step(80), step(88)], [step(80, "loss")], "state"),
        ([step(64), step(72), step(80), step(88)], [step(80)], "nothing"),
        ([step(64, "", False), step(72), step(80), step(88)], [], "nothing"),
        ([step(64, "", False), step(72, "", False), step(80, "", False), step(88)], [], "not judged"),
        ([step(80, "loss nan", False), step(88, "loss nan", False)], [], "data"),
    ],
)
def test_conclusions(replayed: list[ReplayedStep], seen: list[ReplayedStep], kind: str) -> None:
    assert conclude(PLANNED, replayed, seen, 32).kind == kind


def test_a_report_is_read_with_the_samples_of_each_step(run: Path) -> None:
    steps: list[Any] = read_report(run / "spikes" / "step_0000014")
    assert [(one.step, one.samples) for one in steps[-4:]] == [
        (11, (80, 88)),
        (12, (88, 96)),
        (13, (96, 104)),
        (14, (104, 112)),
    ]
