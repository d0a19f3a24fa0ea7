"""Layouts timed by the real trainer under torchrun. Nothing here looks at how fast anything is."""

import json
from pathlib import Path

import pytest
from tiny_runs import QUICKSTART

import smol_config
from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.gpus import GPUS
from smol_train.measure import STEPS, Measured, measure, render, short_run
from smol_train.plan import main
from smol_train.search import Layout, search

H100 = GPUS["h100"]
LAYOUT = Layout(tensor=2, pipeline=1, context=1, data=1, micro_batch_size=4, micro_batches=2)


@pytest.fixture
def config(overrides: list[str]) -> RunConfig:
    return smol_config.load(RunConfig, QUICKSTART, [*overrides, "train.precision=bf16", "train.backend=torch"])


@pytest.mark.slow
def test_the_first_layouts_run_in_the_real_trainer(
    config: RunConfig, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*overrides, "train.precision=bf16", "train.backend=torch", "model.num_layers=3"]  # odd: no pipeline of two
    assert main(["--config", str(QUICKSTART), "--search", "--gpus", "2", "--measure", "--json", *arguments]) == 0
    measured = [Measured.model_validate(one) for one in json.loads(capsys.readouterr().out)["measured"]]
    assert {(one.layout.tensor, one.layout.data) for one in measured} == {(1, 2), (2, 1)}
    assert all(one.measured and one.measured > 0 and not one.failure for one in measured)


def test_a_layout_that_fails_says_why(config: RunConfig, tmp_path: Path) -> None:
    missing = config.data.model_copy(update={"datasets": {name: str(tmp_path / name) for name in config.data.datasets}})
    found = search(config, 1, H100)
    (one,) = measure(config.model_copy(update={"data": missing}), found, layouts=1)
    assert one.measured is None
    assert str(tmp_path) in one.failure and "error" in one.failure
    assert "failed: " in render([one])


def test_the_short_run_is_the_first_stage_in_the_layout_and_loads(config: RunConfig, tmp_path: Path) -> None:
    run = short_run(config, LAYOUT, tmp_path)
    assert run.train_steps == STEPS
    assert (run.parallel.tensor, run.parallel.sequence, run.train.micro_batch_size) == (2, True, 4)
    assert run.problems() == []
    (tmp_path / "run.yaml").write_text(smol_config.to_yaml(run), encoding="utf8")
    assert smol_config.load(RunConfig, tmp_path / "run.yaml") == run
    assert Path(run.train.output_dir).is_relative_to(tmp_path)


def test_a_batch_ramp_and_a_profiled_window_that_lie_later_are_left_out(overrides: list[str], tmp_path: Path) -> None:
    later = ["data.stages.0.steps=90", "train.batch_ramp=[{until_step: 50, global_batch_size: 4}]", "profiling.steps=[30, 40]"]
    run = short_run(smol_config.load(RunConfig, QUICKSTART, [*overrides, *later]), LAYOUT, tmp_path)
    assert run.problems() == []
    assert [segment.batch_size for segment in run.segments] == [8]


def test_the_fastest_measured_stands_first() -> None:
    slow, fast = (Measured(layout=LAYOUT, predicted=5.0, measured=rate) for rate in (10.0, 20.0))
    assert [line.split()[8] for line in render([slow, fast]).splitlines()[1:]] == ["20", "10"]


def test_a_layout_is_named_with_its_chunks_and_recomputation_where_it_has_any() -> None:
    assert LAYOUT.name() == "tensor 2, pipeline 1, context 1, micro-batch 4"
    chunked = LAYOUT.model_copy(update={"pipeline": 2, "virtual_pipeline": 3, "recompute": "full"})
    assert chunked.name() == "tensor 2, pipeline 2 x 3 chunks, context 1, micro-batch 4, recompute full"


def test_more_than_a_node_is_refused(config: RunConfig) -> None:
    found = search(config, 8, H100).model_copy(update={"gpus": 16})
    with pytest.raises(ConfigError, match=r"--measure with gpus=16 needs more ranks than one node's 8; lower --gpus"):
        measure(config, found)
