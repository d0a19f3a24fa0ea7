"""The plan against hand-computed figures and SmolLM3's published ones; its command."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plan_parts import ROOT, SMOLLM3, small, smollm3

import smol_config
from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.plan import dry_run, main, plan
from smol_train.plan_text import render


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_smollm3_is_planned_at_its_published_size_and_speed() -> None:
    result = plan(smollm3())
    assert result.parameters == 3_075_098_624
    assert result.flops_per_token == pytest.approx(22.07e9, rel=2e-4)
    assert result.flops_per_token_6nd == 6 * 3_075_098_624
    assert result.tokens_per_step == 2_359_296
    assert result.train_steps == 4_720_000
    assert result.train_tokens == 4_720_000 * 2_359_296
    assert (result.gpus, result.data_parallel, result.micro_batches_per_step) == (384, 192, 1)
    assert 13_000 < result.tokens_per_second_per_gpu < 14_000
    assert 23 < result.days < 26
    assert result.memory["bf16"].total < 80e9


def test_stages_follow_each_other_and_tokens_are_rounded_up_to_steps() -> None:
    result = plan(small())
    assert [(s.name, s.first_step, s.last_step, s.tokens, s.datasets) for s in result.stages] == [
        ("one", 1, 6, 6 * 512, 1),
        ("two", 7, 8, 2 * 512, 2),
    ]
    assert result.train_tokens == sum(stage.tokens for stage in result.stages)


RAMP = {
    "batch_ramp": [{"until_step": 2, "global_batch_size": 4}, {"until_step": 3, "global_batch_size": 8}],
}


def test_a_batch_ramp_is_planned_as_it_will_be_trained() -> None:
    config = small(train=RAMP, optim={"schedule": {"kind": "wsd", "decay_steps": 2, "batch_rule": "sqrt"}})
    result = plan(config)
    assert [(piece.first_step, piece.last_step, piece.tokens_per_step) for piece in result.batch_ramp] == [
        (1, 2, 128),
        (3, 3, 256),
    ]
    assert [(s.name, s.steps, s.tokens) for s in result.stages] == [("one", 6, 2 * 128 + 256 + 3 * 512), ("two", 2, 2 * 512)]
    assert result.train_tokens == sum(stage.tokens for stage in result.stages)
    assert [(mark.name, mark.step, mark.learning_rate) for mark in result.schedule][:3] == [
        ("first step", 1, 0.5),
        ("batch after 4", 3, math.sqrt(0.5)),
        ("batch after 8", 4, 1.0),
    ]
    assert result.data_parallel == 2  # what rows of the smallest batch can be shared by
    with pytest.raises(ConfigError, match=r"global_batch_size=16 and train.batch_ramp's \[4, 8\] in rows .* give 2"):
        plan(config, gpus=4)
    assert "128 in steps 1 to 2" in render(result, gpus_given=False)


def test_small_batches_of_a_ramp_take_longer_a_token() -> None:
    ramp = "train.batch_ramp=[{until_step: 2000000, global_batch_size: 192}]"
    plain = plan(smollm3("train.micro_batch_size=1"), gpus=384, gpu="h100")
    ramped = plan(smollm3("train.micro_batch_size=1", ramp), gpus=384, gpu="h100")
    assert ramped.train_tokens == plain.train_tokens - 2_000_000 * 384 * 4096
    assert ramped.days / ramped.train_tokens > plain.days / plain.train_tokens
    assert plain.hours * 3600 == pytest.approx(plain.train_steps * plain.seconds_per_step)


def test_landmarks_are_the_steps_where_the_schedule_bends() -> None:
    assert [(mark.name, mark.step, mark.learning_rate) for mark in plan(small()).schedule] == [
        ("first step", 1, 0.5),
        ("warm-up end", 2, 1.0),
        ("last step at the peak", 6, 1.0),
        ("decay start", 7, 0.5),
        ("end", 8, 0.0),
    ]


def test_hours_follow_from_work_and_assumed_speed() -> None:
    result = plan(small(), gpus=4, mfu=0.5, peak_tflops=2.0)
    seconds = result.train_tokens * result.flops_per_token / (4 * 0.5 * 2.0e12)
    assert result.hours * 3600 == pytest.approx(seconds)
    assert result.gpu_hours == pytest.approx(4 * result.hours)
    assert result.seconds_per_step * result.train_steps == pytest.approx(seconds)
    assert (result.data_parallel, result.micro_batches_per_step) == (4, 2)


def test_the_configured_peak_holds_unless_another_is_given() -> None:
    config = smollm3("logging.peak_tflops=312")
    assert plan(config).peak_tflops == 312
    assert plan(config, peak_tflops=500).peak_tflops == 500
    assert plan(smollm3()).peak_tflops == 989


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (7, r"gpus=7 is not a multiple of the 2 ranks .*parallel.tensor=2 x pipeline=1 x context=1\); give 6"),
        (400, "gpus=400 make 200 copies .*global_batch_size=576 .*micro_batch_size=3 .*give 384"),
    ],
)
def test_gpus_that_do_not_fit_are_refused_with_the_nearest_that_do(gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(smollm3(), gpus=gpus)


@pytest.mark.parametrize("arguments", [{"mfu": 0.0}, {"mfu": 1.1}, {"peak_tflops": 0.0}, {"peak_tflops": -1.0}])
def test_impossible_speeds_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"mfu=.* and peak_tflops="):
        plan(small(), **arguments)


# --- commands ----------------------------------------------------------------------------------------------------------


def test_what_uploads_keep_on_disk_is_said() -> None:
    assert "uploaded to" not in render(plan(smollm3()), gpus_given=False)
    text = render(plan(smollm3("checkpoint.upload=${BUCKET}/runs")), gpus_given=False)
    assert "${BUCKET}/runs; one that has not arrived there stays on disk, whatever keep_last says" in text


def test_dry_run_as_json_is_one_object_with_the_plan_and_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(SMOLLM3, ["train.seed=7"], as_json=True) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    expected = {"parameters": 3_075_098_624, "tokens_per_step": 2_359_296, "train_steps": 4_720_000}
    assert {name: result[name] for name in expected} == expected
    assert {"flops_per_token", "flops_per_token_6nd", "train_tokens", "memory", "schedule", "stages", "hours"} < set(result)
    assert result["config"]["train"]["seed"] == 7
    assert "DATA_ROOT, RUN_ROOT" in err


def test_dry_run_as_text_starts_with_a_configuration_that_loads_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert dry_run(SMOLLM3, [], as_json=False) == 0
    text = capsys.readouterr().out
    resolved, _, figures = text.partition("\n\n")
    (tmp_path / "again.yaml").write_text(resolved, encoding="utf8")
    assert smol_config.load(RunConfig, tmp_path / "again.yaml", keep_unset=True) == smollm3()
    for figure in ("3,075,098,624", "22,073,573,376", "11.14 T tokens", "steps 4,198,001 to 4,720,000", "this run", "MFU 30%"):
        assert figure in figures


def test_set_variables_are_filled_in_and_not_noted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/somewhere")
    assert dry_run(SMOLLM3, [], as_json=False) == 0
    out, err = capsys.readouterr()
    assert "/somewhere/fineweb-edu" in out
    assert "RUN_ROOT" in err and "DATA_ROOT" not in err


def test_the_command_takes_gpus_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "--gpus", "96", "--json", "train.micro_batch_size=2", "--mfu", "0.4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["gpus"], result["micro_batches_per_step"], result["mfu"]) == (96, 6, 0.4)


def test_the_command_reports_a_fault_in_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "train.micro_batch=2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and "micro_batch_size" in err


def test_planning_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from smol_train import plan; "
        f"plan.dry_run({SMOLLM3!r}, [], as_json=True); "
        "sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stderr.decode()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m smol_train.plan --config configs/smollm3/pretrain.yaml --gpus 384" in capsys.readouterr().out
