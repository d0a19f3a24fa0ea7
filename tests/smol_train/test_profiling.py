"""Profiling windows, and what the files RUN/save, RUN/stop and RUN/profile do to a run of two ranks."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
import watch_jobs
from ranks import Ranks
from tiny_runs import QUICKSTART

import pretrain_smol
from smol_config import ConfigError, load, parse
from smol_train.checkpoint_folder import read_state, whole_checkpoints
from smol_train.config import RunConfig
from smol_train.sections.watch import ProfilingConfig


@pytest.fixture
def overrides(overrides: list[str]) -> list[str]:
    """Small steps: a trace holds every operation."""
    return [*overrides, "train.global_batch_size=4", "model.num_layers=2"]


def profiles(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "profiles").glob("*"))


def optimizer_steps(trace: Path) -> int:
    """How many optimizer steps a trace shows."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return sum(event.get("name", "").startswith("Optimizer.step") for event in events)


def test_a_configured_window_records_its_steps_on_its_ranks(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = ["profiling.steps=[3,5]", "profiling.ranks=[1]", "profiling.memory=true"]
    ranks.run(watch_jobs.train_with_triggers, 2, overrides=[*overrides, *settings], touched={})
    assert profiles(tmp_path / "run") == ["step_0000003_rank_1.json.gz", "step_0000003_rank_1.txt"]
    folder = tmp_path / "run" / "profiles"
    assert optimizer_steps(folder / "step_0000003_rank_1.json.gz") == 2
    table = (folder / "step_0000003_rank_1.txt").read_text()
    assert "aten::mm" in table and "Self CPU time total" in table


def test_a_window_from_the_first_step_and_one_that_outlasts_the_run(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "data.stages.0.steps=2", "data.stages.1.steps=4"]
    ranks.run(watch_jobs.train_with_triggers, 1, overrides=[*settings, "profiling.steps=[0,100]"], touched={})
    assert optimizer_steps(tmp_path / "run" / "profiles" / "step_0000000_rank_0.json.gz") == 6


def test_a_resumed_run_records_what_is_left_of_the_window(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    window = [*overrides, "profiling.steps=[4,8]"]
    ranks.run(watch_jobs.train_with_triggers, 1, overrides=overrides, touched={"stop": 5})
    [again] = ranks.run(watch_jobs.train_with_triggers, 1, overrides=window, touched={})
    assert again == {"code": 0, "step": 10}
    assert optimizer_steps(tmp_path / "run" / "profiles" / "step_0000006_rank_0.json.gz") == 2


def test_a_touched_file_has_the_next_five_steps_recorded(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    [result, _] = ranks.run(watch_jobs.train_with_triggers, 2, overrides=overrides, touched={"profile": 1})
    assert result == {"code": 0, "step": 10}
    assert profiles(tmp_path / "run") == ["step_0000002_rank_0.json.gz", "step_0000002_rank_0.txt"]
    assert optimizer_steps(tmp_path / "run" / "profiles" / "step_0000002_rank_0.json.gz") == 5
    assert not (tmp_path / "run" / "profile").exists()


def test_a_profile_that_cannot_be_written_costs_the_profile_only(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profiles").write_text("a file where the folder should be")
    [result] = ranks.run(watch_jobs.train_with_triggers, 1, overrides=[*overrides, "profiling.steps=[1,2]"], touched={})
    assert result == {"code": 0, "step": 10}


def test_a_touched_save_file_saves_for_any_layout_and_goes_on(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "checkpoint.keep_last=9", "train.precision=bf16"]
    results = ranks.run(watch_jobs.train_with_triggers, 2, overrides=settings, touched={"save": 2})
    assert results == [{"code": 0, "step": 10}] * 2
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == [
        f"iter_{step:07d}"
        for step in (3, 6, 10)  # seen before step 3; the others are the stages' ends
    ]
    state = read_state(tmp_path / "run" / "iter_0000003")
    assert (state.reason, state.optimizer) == ("save requested", "fully_reshardable")
    assert not (tmp_path / "run" / "save").exists()


@pytest.mark.parametrize("signal_at", [None, 3], ids=["alone", "with a signal"])
def test_a_touched_stop_file_saves_and_keeps_the_run_out_of_the_queue(
    signal_at: int | None, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    results = ranks.run(watch_jobs.train_with_triggers, 2, overrides=overrides, touched={"stop": 3}, signal_at=signal_at)
    assert results == [{"code": 93, "step": 4}] * 2
    assert read_state(tmp_path / "run" / "iter_0000004").reason == "stop requested"
    assert not (tmp_path / "run" / "stop").exists()  # so that the next start goes on


def test_a_folder_in_a_trigger_files_place_asks_for_nothing(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "stop").mkdir(parents=True)
    [result] = ranks.run(watch_jobs.train_with_triggers, 1, overrides=overrides, touched={})
    assert result == {"code": 0, "step": 10}
    shutil.rmtree(tmp_path / "run" / "stop")


def test_windows_that_record_nothing_are_refused(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"profiling.steps=\[5, 5\] holds no step; give \[first, end\] with first < end"):
        parse(ProfilingConfig, {"steps": [5, 5]}, source="test", at="profiling")
    with pytest.raises(ConfigError, match=r"profiling.steps=\[10, 15\] begins after the run's 10 steps; choose earlier ones"):
        load(RunConfig, QUICKSTART, [*overrides, "profiling.steps=[10,15]"])
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, "profiling.ranks=[0,4]"]) == 93
    assert "profiling.ranks=[4] do not exist among 1; use 0 to 0" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_recorded_on_cuda(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "train.precision=bf16", "profiling.steps=[2,4]", "profiling.memory=true"]
    assert pretrain_smol.main(["--config", str(QUICKSTART), *settings]) == 0
    assert (tmp_path / "run" / "profiles" / "step_0000002_rank_0.pickle").stat().st_size > 0
