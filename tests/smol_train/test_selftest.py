"""The self-test: its checks of resume and parity, with and without a fault put into the ranks; what they share; its report."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import selftest_jobs
from ranks import Ranks
from selftest_jobs import MakeSetting, PoolCrew
from tiny_runs import QUICKSTART

from smol_train import selftest
from smol_train.selftests import parity, processes, resume
from smol_train.selftests.base import JobError
from smol_train.selftests.layouts import allowed
from smol_train.selftests.runs import Run, data_fault, distance, together

# --- resume ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_resume_also_on_another_layout(make_setting: MakeSetting) -> None:
    found = resume.check(make_setting(2, "train.precision=bf16"))
    assert found.outcome == "passed", found
    text = "\n".join(found.details)
    assert text.count("bit for bit") == 2
    assert "killed after step 5, stopped after step 6" in text
    assert "after kill -9: steps 5 to 8" in text and "after SIGTERM, on TP2 with SP: steps 7 to 8" in text


def test_a_resumed_run_without_its_optimizer_state_fails(make_setting: MakeSetting) -> None:
    sound, moments = make_setting(1), resume.Moments(save_every=2, kill=5, stop=4)
    whole = resume.uninterrupted(sound)

    def again() -> Run:
        return resume.uninterrupted(sound, "again")

    assert resume.after_signal(sound, moments, whole, again) == (
        [],
        ["after SIGTERM: steps 5 to 8, same data, bit for bit"],
    )
    shutil.rmtree(sound.folder / "stopped")
    faults, _ = resume.after_signal(make_setting(1, fault="optimizer_dropped"), moments, whole, again)
    assert len(faults) == 1 and "same data, losses to" in faults[0] and "uninterrupted runs agree bit for bit" in faults[0]


def test_a_resumed_run_one_step_off_in_the_data_fails(make_setting: MakeSetting) -> None:
    whole = resume.uninterrupted(make_setting(1))
    faults, _ = resume.after_signal(make_setting(1, fault="data_off_by_one"), resume.Moments(2, 5, 4), whole, lambda: whole)
    assert faults == ["after SIGTERM: step 5 (samples 32 to 39) was given other tokens than the reference"]


def test_moments_leave_a_checkpoint_behind_and_a_step_to_train() -> None:
    for steps in range(resume.FEWEST_STEPS, 30):
        for seed in range(20):
            moments = resume.draw(steps, seed)
            assert 2 * moments.save_every < moments.kill < steps and 1 < moments.stop < steps - 1
    assert len({resume.draw(12, seed) for seed in range(20)}) > 5


# --- parity ----------------------------------------------------------------------------------------------------------------


def test_layouts_train_like_one_rank(make_setting: MakeSetting) -> None:
    found = parity.check(make_setting(2, steps=4))
    assert found.outcome == "passed", found
    assert list(found.figures["layouts"]) == ["DP2", "TP2 with SP", "PP2"]
    assert found.figures["losses"][0] > 6


def test_a_gradient_that_is_not_summed_over_ranks_fails(make_setting: MakeSetting) -> None:
    settings = ("parallel.tensor=2", "parallel.sequence=true", "model.num_layers=3")
    found = parity.check(make_setting(2, *settings, fault="norms_not_summed"))
    assert found.outcome == "failed" and found.summary.startswith("TP2 with SP: losses to")
    assert any(line.startswith("not compared, PP2: model.num_layers=3") for line in found.details)


def test_parity_is_skipped_where_there_is_nothing_to_compare(make_setting: MakeSetting) -> None:
    alone = parity.check(make_setting(1))
    assert alone.outcome == "skipped" and "one layout only" in alone.summary
    small = parity.check(make_setting(2, fault="no_room"))
    assert small.outcome == "skipped" and "the model fits no layout" in small.summary


# --- what the checks share -------------------------------------------------------------------------------------------------


def test_the_ranks_at_hand_decide_the_layouts(make_setting: MakeSetting) -> None:
    def names(world_size: int, *settings: str) -> tuple[list[str], list[str]]:
        layouts, refused = allowed(make_setting(world_size, *settings).config, world_size)
        return [one.name for one in layouts], refused

    assert names(1) == (["one rank"], [])
    assert names(4) == (["DP4", "TP2 with SP", "PP4", "TP2 x PP2 with SP"], [])  # two groups of key-value heads: no TP4
    interleaved = ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]
    assert names(2, *interleaved) == (["PP2 x VPP2", "TP2 with SP", "PP2", "DP2"], [])
    assert names(2, "train.global_batch_size=2", "parallel.tensor=2") == (
        ["TP2", "TP2 with SP", "PP2"],
        [
            "DP2: train.global_batch_size=2 does not divide into rows of train.micro_batch_size=2 on 2 copies of the model; "
            "change one of them or the number of ranks"
        ],
    )


def test_runs_are_compared_by_every_step() -> None:
    run = Run(0, 0, [2.0, 1.0], [1.0, 1.0], [[0, 4], [4, 4]], [["a"], ["b"]])
    assert distance(run, run) == (0.0, 0.0) and data_fault(run, run) == ""
    apart = distance(run, run._replace(losses=[2.0, 1.5], norms=[1.0, float("nan")]))
    assert apart == (0.5, float("inf")) and not apart.within("bf16")
    assert distance(run, run._replace(losses=[2.0])).loss == float("inf")
    assert "step 2 took samples 8 to 11, the reference 4 to 7" in data_fault(run, run._replace(samples=[[0, 4], [8, 4]]))
    assert "step 2" in data_fault(run, run._replace(windows=[["a"], ["c"]]))


def test_ranks_of_one_copy_must_be_given_the_same_tokens() -> None:
    step = {"loss": 1.0, "norm": 1.0, "samples": [0, 1]}
    ranks = [{"first_step": 0, "exit_code": 0, "place": [0, 0], "steps": [{**step, "windows": [seen]}]} for seen in "ab"]
    with pytest.raises(ValueError, match="rank 1 was given other tokens"):
        together(ranks)


def test_a_rank_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    with pytest.raises(JobError, match="rank 1: RuntimeError: out of paper"):
        processes.Processes(2, {0: 0, 1: 1}).run(selftest_jobs.waits_for_the_other, 2)


def test_a_job_that_was_to_be_killed_and_was_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="it was to be killed, but rank 0: None"):
        processes.Processes(1, {0: 0}).run_killed(print, 1)


# --- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(ranks: Ranks, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command on the pool's ranks."""
    fault = [""]

    @contextmanager
    def pool(count: int | None) -> Iterator[PoolCrew]:
        yield PoolCrew(ranks, count or 1, fault[0])

    monkeypatch.setattr(processes, "processes", pool)

    def run(*arguments: str, put_in: str = "") -> int:
        fault[0] = put_in
        settings = [*overrides, "train.backend=torch"]
        return selftest.main([arguments[0], "--config", str(QUICKSTART), *settings, *arguments[1:]])

    return run


def test_the_command_reports_on_the_terminal_and_in_json(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "there" / "report.json"
    assert command("isolation", "--json", str(report), "--seed", "5") == 0
    assert "1 rank, " in (text := capsys.readouterr().out) and "\nisolation   passed " in text
    written: dict[str, Any] = json.loads(report.read_text())
    assert written["seed"] == 5 and written["resolved"]["model"]["hidden_size"] == 64
    assert [(check["check"], check["outcome"]) for check in written["checks"]] == [("isolation", "passed")]
    assert not (tmp_path / "run").exists() and list((tmp_path / "run_selftest").iterdir()) == []


def test_a_failed_check_is_exit_code_1_and_a_skipped_one_is_not_called_passed(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("isolation", put_in="no_document_mask") == 1
    assert command("seeds", "--output", str(tmp_path / "elsewhere")) == 0
    text = capsys.readouterr().out
    assert "\nisolation   failed " in text and "\nseeds       skipped" in text
    assert json.loads((tmp_path / "elsewhere" / "selftest.json").read_text())["checks"][0]["outcome"] == "skipped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "--steps", "5"], "--steps 5 leaves no room to kill, stop and resume a run; give at least 6"),
        (["parity", "--ranks", "3", "parallel.tensor=2"], "3 ranks do not divide into copies of parallel.tensor=2 x"),
        (["parity", "--ranks", "3"], "train.global_batch_size=8 does not divide into rows of train.micro_batch_size=2 on 3"),
        (["parity", "data.datasets.docs=/nowhere"], "/nowhere"),
        (["seeds", "modle.num_layers=4"], "modle"),
        (["seeds", "--json", "/proc/none/report.json"], "/proc/none cannot be made (No such file or directory); give another"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    command: Callable[..., int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 93
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_the_run_s_own_folder_is_refused(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("seeds", "--output", str(tmp_path / "run" / "test")) == 93
    assert "lies in the run's folder, train.output_dir=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ranks_are_not_started_by_launched_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(selftest.ConfigError, match="--ranks 4 was given to one of 2 launched processes"),
        processes.processes(4),
    ):
        pass
