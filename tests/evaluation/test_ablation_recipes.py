"""Sweeps of post-training: planned by the recipe itself, really trained, killed, finished, scored and reported."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ablation_parts import commands_with
from chats import write_rows
from evaluation_parts import COLOURS, Write
from recipe_kit import pairs, write_config
from tiny_runs import REPOSITORY

from evaluation.__main__ import main
from evaluation.ablations import kinds, trainer
from evaluation.ablations.run_folder import outcome
from evaluation.ablations.sweep import Arm, current_round, load_sweep
from post_training.recipes.config import RECIPES
from smol_config import UserError

STEPS = 12


def test_recipes_are_those_of_post_training() -> None:
    assert list(kinds.RECIPES) == list(RECIPES)
    assert all(kind.command == ("-m", "post_training", name) for name, kind in kinds.RECIPES.items())


def write_sweep(folder: Path, chat_folder: Path, **settings: Any) -> Path:
    """A sweep of beta over a few steps on pairs, with others held out; its baseline takes the model from ${MODEL}."""
    held_out = pairs(60)[40:]
    source = {"name": "held", "kind": "preference", "path": str(write_rows(folder / "held.jsonl", held_out))}
    changes = {
        "train": {"steps": STEPS},
        "checkpoint": {"every_steps": 4, "keep_last": 1},
        "data": {"held_out": [source]},
        "logging": {"every_steps": 2},
    }
    base = yaml.safe_load(write_config(folder, "preference", chat_folder, changes).read_text())
    (folder / "preference.yaml").write_text(yaml.safe_dump(base | {"model": "${MODEL}"}))
    sweep = {
        "recipe": "preference",
        "baseline": "preference.yaml",
        "output": str(folder / "sweep"),
        "changes": [{"name": "strong", "overrides": ["preference.beta=2.0"]}],
        "seeds": {"baseline": [6], "changes": [6]},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep | settings))
    return path


# --- refusals ----------------------------------------------------------------------------------------------------------------


def test_the_recipe_plans_every_arm_and_its_words_are_passed_on(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", str(chat_folder))
    write_sweep(tmp_path, chat_folder)
    kind = kinds.RECIPES["preference"]
    found = trainer.plan(Arm("good", tmp_path / "preference.yaml", (), (), kind))
    assert (found["recipe"], found["train_steps"]) == ("preference", STEPS) and found["parameters"] > 10_000
    with pytest.raises(UserError, match=r"^odd: .*preference.beta: Input should be greater than 0, got -1"):
        trainer.plan(Arm("odd", tmp_path / "preference.yaml", ("preference.beta=-1",), (), kind))


def test_a_configuration_of_another_recipe_and_a_model_that_is_not_there_are_refused(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, chat_folder)
    assert main(["ablate", str(path)]) == 2
    assert "${MODEL} not set in the environment; export MODEL=... first" in capsys.readouterr().err
    monkeypatch.setenv("MODEL", str(tmp_path / "nowhere"))
    assert main(["ablate", str(path)]) == 2
    assert f"baseline: model={tmp_path}/nowhere is not a folder" in capsys.readouterr().err
    monkeypatch.setenv("MODEL", str(chat_folder))
    assert main(["ablate", str(path), "recipe=sft"]) == 2
    assert "preference: unknown key" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_on_a_cluster_a_run_is_a_job_of_its_recipe(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(chat_folder))
    [run] = current_round(load_sweep(write_sweep(tmp_path, chat_folder))).baseline.runs
    assert (run.mapping["model"], run.mapping["train"]["seed"], run.mapping["data"]["seed"]) == (str(chat_folder), 6, 6)
    submit = tmp_path / "slurm" / "submit.sh"
    submit.parent.mkdir()
    submit.write_text('echo "job: $*"\n')
    monkeypatch.setattr(trainer, "REPOSITORY", tmp_path)
    assert trainer.submit(run) == f"baseline, seed 6: job: --once post_training {run.folder / 'config.yaml'} -- preference"


# --- what a recipe's run leaves ----------------------------------------------------------------------------------------------


def write_run(folder: Path, losses: list[float], *alerts: tuple[str, str]) -> Path:
    """Metrics with a loss every other line, as where evaluation has a line of its own; a checkpoint of step 10."""
    (folder / "iter_0000010").mkdir(parents=True)
    (folder / "iter_0000010" / "COMPLETE").write_text("")
    lines = []
    for step, loss in enumerate(losses, 1):
        speed = {"perf/tokens_per_second": 200.0, "perf/tokens_per_second_per_device": 100.0}
        lines += [{"step": step, "tokens": 10 * step, "train/loss": loss, **speed}]
        lines += [{"step": step, "tokens": 10 * step, "eval/loss": 9.0, "eval/reward": 0.5, "eval/reward_std": 0.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "alerts.jsonl").write_text("".join(json.dumps({"event": e, "text": t}) + "\n" for e, t in alerts))
    return folder


def test_the_run_itself_says_when_it_is_done_or_has_diverged(tmp_path: Path) -> None:
    falling, kind = [8 - n / 10 for n in range(30)], kinds.RECIPES["sft"]
    done = outcome(write_run(tmp_path / "done", falling, ("started", ""), ("done", "10 steps")), None, kind)
    assert (done.state, done.scores, done.numbers["tokens"]) == ("done", {"eval/loss": 9.0}, 300)
    half = outcome(write_run(tmp_path / "half", falling, ("started", "")), None, kind)
    assert (half.state, half.reason, half.scores) == ("waiting", "to go on from step 10", {})
    lost = outcome(write_run(tmp_path / "lost", falling, ("diverged", "step 31: loss nan")), None, kind)
    assert (lost.state, lost.reason) == ("diverged", "step 31: loss nan")


def test_the_loss_of_sampled_answers_is_no_sign_of_divergence(tmp_path: Path) -> None:
    rising = write_run(tmp_path / "run", [0.0] * 20 + [0.01] * 20, ("done", ""))
    assert outcome(rising, None, kinds.RECIPES["sft"]).state == "diverged"
    found = outcome(rising, None, kinds.RECIPES["grpo"])
    assert (found.state, found.scores) == ("done", {"eval/reward": 0.5})


# --- a real sweep ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_sweep_of_a_recipe_that_is_killed_is_finished_by_the_same_command(
    chat_folder: Path, tmp_path: Path, write_suite: Write, write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task("colours", COLOURS)
    suite = write_suite([{"name": "colours"}])
    monkeypatch.setenv("MODEL", str(chat_folder))
    path = write_sweep(tmp_path, chat_folder, suite=suite.name)
    command = [sys.executable, "-m", "evaluation", "ablate", str(path)]
    baseline, change = (tmp_path / "sweep" / "runs" / f"{name}-seed6" for name in ("baseline", "strong"))
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        while not (change / "iter_0000004" / "COMPLETE").exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.05)
        first.kill()
        first.wait()
    while commands_with(tmp_path):  # its ranks hear of it, save and end
        time.sleep(0.1)
    whole = (baseline / f"iter_{STEPS:07d}" / "COMPLETE").stat().st_mtime_ns
    assert not (tmp_path / "sweep" / "results.json").exists()

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (change / "train.log").read_text()
    assert (baseline / f"iter_{STEPS:07d}" / "COMPLETE").stat().st_mtime_ns == whole, "it was not trained again"
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [(run["arm"], run["state"], run["devices"]) for run in results["runs"]] == [
        ("baseline", "done", 1),
        ("strong", "done", 1),
    ]
    names = {"eval/rewards/accuracies", "eval/colours/acc"}
    assert names <= results["comparisons"]["strong"].keys() and "eval/loss" not in results["comparisons"]["strong"]
    assert all(results["higher_is_better"][name] for name in names)
    assert (tmp_path / "sweep" / "report.html").is_file() and not commands_with(tmp_path)
    config = yaml.safe_load((change / "config.yaml").read_text())
    assert (config["train"]["seed"], config["data"]["seed"], config["model"]) == (6, 6, str(chat_folder))

    monkeypatch.setenv("MODEL", str(tmp_path / "sweep" / "runs" / "strong-seed6" / "hf" / f"step_{STEPS}"))
    other = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert f"was begun with other settings than the sweep now has (model: {chat_folder}, now " in other.stderr
