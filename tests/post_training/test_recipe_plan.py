"""`--dry-run` of a recipe: what is known before and after the data is prepared, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from grpo_kit import grpo_config, undecided
from recipe_kit import metrics, run, write_config

from post_training.prepare import prepare
from post_training.recipes.config import RECIPES
from post_training.recipes.plan import plan
from smol_config import UserError, load

EPOCHS = {"train": {"steps": None, "epochs": 0.3}}


def planned(recipe: str, config: Path, *overrides: str) -> dict[str, Any]:
    return plan(recipe, load(RECIPES[recipe], config, overrides))


def test_steps_of_epochs_are_known_once_the_data_is_prepared_and_nothing_is_written(
    chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, "sft", chat_folder, EPOCHS)
    assert run("sft", config, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recipe"], found["rows"], found["train_steps"], found["train_tokens"]) == ("sft", None, None, None)
    assert found["config"]["train"]["epochs"] == 0.3 and found["parameters"] > 10_000
    assert planned("sft", config, "train.epochs=null", "train.steps=7")["train_steps"] == 7
    assert run("sft", config, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "learning_rate: 0.001" in said and "parameters; rows an epoch, steps, tokens known once the data is prepared" in said
    assert not (tmp_path / "run").exists()


def test_a_plan_over_prepared_data_is_what_the_run_then_does(
    chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of an epoch of 24 steps, rounded up."""
    config = write_config(tmp_path, "sft", chat_folder, EPOCHS)
    assert run("sft", config, "logging.every_steps=1") == 0
    found, last = planned("sft", config), metrics(tmp_path / "run")[-1]
    assert (found["rows"], found["train_steps"], last["step"]) == (48, 8, 8)
    assert found["train_tokens"] == pytest.approx(last["tokens"], rel=0.1)  # rows are not equally full
    capsys.readouterr()
    assert run("sft", config, "--dry-run") == 0
    assert "; 48 rows an epoch; 8 steps; " in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["sft", "preference", "grpo"])
def test_steps_are_the_trainers_own(recipe: str, chat_folder: Path, tmp_path: Path) -> None:
    """Also where micro-batches do not fill a step, or prompts a batch."""
    from post_training.recipes.arguments import training_arguments
    from post_training.recipes.run import _last_step
    from post_training.recipes.trainers import make_trainer

    if recipe == "grpo":
        train = {"steps": None, "epochs": 2.5, "micro_batch_size": 8, "global_batch_size": 24}
        path = grpo_config(tmp_path, undecided(tmp_path / "model", chat_folder), {"train": train})
    else:
        train = {"steps": None, "epochs": 2.5, "micro_batch_size": 3, "global_batch_size": 15}
        path = write_config(tmp_path, recipe, chat_folder, {"train": train, "data": {"packing": False}})
    config = load(RECIPES[recipe], path)
    trainer = make_trainer(config, training_arguments(config), prepare(config, tmp_path / "run" / "data"))
    assert planned(recipe, path)["train_steps"] == _last_step(trainer) > 0


FAULTS = {
    "no model": (["model=/nowhere"], r"^model=/nowhere is not a folder"),
    "template": (["data.template=hybrd"], r"data.template=hybrd is neither a file nor a template here; did you mean 'hybrid'"),
    "source": (["data.sources.0.path=/nowhere"], r"dataset sums: path=/nowhere is not there, and no namespace/name"),
    "held out": (["data.held_out=[{name: far, path: ./far}]"], r"dataset far: path=./far is not there, and no namespace/name"),
    "layout": (["train.accelerate=fsdp"], r"train.accelerate=fsdp is neither a file nor one of configs/accelerate"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_would_not_begin_is_refused(case: str, chat_folder: Path, tmp_path: Path) -> None:
    overrides, sentence = FAULTS[case]
    config = write_config(tmp_path, "sft", chat_folder)
    with pytest.raises(UserError, match=sentence):
        planned("sft", config, *overrides)


def test_a_dataset_of_the_hub_is_not_fetched(chat_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "sft", chat_folder)
    assert planned("sft", config, "data.sources.0.path=someone/something")["rows"] is None


def test_a_batch_for_another_number_of_processes_is_refused(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"is not a multiple of train.micro_batch_size=1 x 3 processes"):
        planned("sft", write_config(tmp_path, "sft", chat_folder))


def test_weights_that_are_missing_or_damaged_are_told(
    chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(chat_folder, tmp_path / "model"))
    config = write_config(tmp_path, "sft", copy)
    (copy / "model.safetensors").write_bytes(b"no header")
    assert run("sft", config, "--dry-run") == 93
    assert "model.safetensors is damaged" in capsys.readouterr().err
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no \*.safetensors; give a Hugging Face folder with its weights"):
        planned("sft", config)
