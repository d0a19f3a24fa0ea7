"""GRPO's life: a reward that rises, a run gone on with, what is told of a run that learns nothing."""

import json
import os
import signal
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from chats import write_rows
from grpo_kit import QUESTIONS, RIGHT, grpo_config, undecided
from recipe_kit import metrics, run, without_times
from safetensors.numpy import load_file
from test_recipe_runs import lines, when

from post_training.recipes import exit_codes
from post_training.recipes.checkpoints import tokens_of

STEPS = {"train": {"steps": 14}, "checkpoint": {"every_steps": 14}}
"""Four of the eight questions a step: seven epochs."""


@pytest.fixture(scope="module")
def start(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undecided(tmp_path_factory.mktemp("undecided"), chat_folder)


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with (folder / "told").open("w") as told, redirect_stderr(told):
        assert run("grpo", grpo_config(folder, start, STEPS)) == 0
    return folder / "run"


def test_a_reward_that_can_be_learnt_rises(whole: Path) -> None:
    """From two answers in five to nine in ten; the seed is given. Groups whose answers differ are not told of as equal."""
    equal = metrics(whole)[0]["train/rewards/accuracy/equal_groups"]
    assert equal < 1 and equal == metrics(whole)[0]["train/rewards/equal_groups"]
    assert "step 1: " not in (whole.parent / "told").read_text()
    rewards = [line["train/rewards/accuracy/mean"] for line in metrics(whole)]
    assert sum(rewards[:2]) / 2 < 0.5 and sum(rewards[-3:]) / 3 > 0.8
    last = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()][-8:]
    assert {line["step"] for line in last} == {14} and sum(line["answer"] == RIGHT for line in last) >= 6
    assert all(line["rewards"]["accuracy"] == float(line["answer"] == RIGHT) for line in last)


def test_tokens_are_those_of_prompts_and_answers(whole: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole / "hf/step_14")
    chats = [[{"role": "system", "content": "/no_think"}, {"role": "user", "content": text}] for text in QUESTIONS]
    asked = [len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]
    line = metrics(whole)[0]
    answers = 32 * line["train/completions/mean_length"]
    assert 32 * min(asked) + answers <= line["tokens"] <= 32 * max(asked) + answers
    assert tokens_of(whole / "iter_0000014") == metrics(whole)[-1]["tokens"]


def test_a_signal_saves_and_the_run_goes_on_with_the_same_bits(whole: Path, start: Path, tmp_path: Path) -> None:
    """Weights, rewards, tokens and answers, across epochs."""
    config, folder = grpo_config(tmp_path, start, STEPS), tmp_path / "run"
    sender = when(lambda: lines(folder) >= 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert run("grpo", config) == exit_codes.REQUEUE
    sender.join()
    step = metrics(folder)[-1]["step"]
    assert 2 < step < 14 and (folder / f"iter_{step:07d}/COMPLETE").is_file()
    with (folder / "answers.jsonl").open(
        "a"
    ) as file:  # of a step after the checkpoint, and a line that a kill left half written
        file.write(json.dumps({"step": step + 1}) + '\n{"step": ')
    assert run("grpo", config) == 0
    assert without_times(metrics(folder)) == without_times(metrics(whole))
    assert (folder / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert (folder / "hf/step_14/model.safetensors").read_bytes() == (whole / "hf/step_14/model.safetensors").read_bytes()


def test_adapters_and_rewards_that_teach_nothing_are_told_by_name(start: Path, tmp_path: Path, capsys: Any) -> None:
    """/think is asked of a model that never thinks, and the right answer is one that it never gives."""
    rows = [{"prompt": question, "answer": "seven"} for question in QUESTIONS]
    held_out = {"name": "held", "kind": "prompts", "keep": ["answer"], "mode": "no_think"}
    held_out["path"] = str(write_rows(tmp_path / "held.jsonl", [{"prompt": "Is it tin?", "answer": RIGHT}]))
    changes: dict[str, Any] = {
        "train": {"precision": "bf16"},
        "lora": {"rank": 2},
        "grpo": {"answers": 8, "max_answer": 4, "beta": 0.1, "loss": "dr_grpo", "mask_truncated": True, "warn_after": 2},
        "rewards": {"accuracy": {"exact": ["words", "held"]}, "format": {"weight": 0.5}},
        "data": {"template": "hybrid", "max_length": 256},
    }
    config = grpo_config(tmp_path, start, changes, mode="think")
    write_rows(tmp_path / "prompts.jsonl", rows)
    assert run("grpo", config, f"data.held_out={json.dumps([held_out])}") == 0
    told = capsys.readouterr().err
    for name in ("reward format", "reward accuracy", "the sum of format and accuracy"):
        assert f"step 1: {name} is the same within every group" in told
        assert f"step 2: {name} is the same within every group, so that it teaches nothing, for 2 logged steps now" in told
    last = metrics(tmp_path / "run")[-1]
    assert last["train/rewards/equal_groups"] == last["train/rewards/format/equal_groups"] == 1
    assert "eval/reward" in last and not [name for name in last if name.startswith("eval/") and "equal" in name]
    assert last["train/kl"] == 0  # no step has moved it
    assert all("lora_" in name for name in load_file(tmp_path / "run/iter_0000002/adapter_model.safetensors"))
    assert (tmp_path / "run/hf/step_2/model.safetensors").is_file()


def test_answers_that_are_all_cut_teach_nothing_and_are_told(start: Path, tmp_path: Path, capsys: Any) -> None:
    """The word fits and the stop token does not; mask_truncated leaves such answers out of the loss."""
    changes = {"grpo": {"answers": 8, "max_answer": 1, "mask_truncated": True}, "train": {"steps": 1}}
    assert run("grpo", grpo_config(tmp_path, start, changes)) == 0
    (line,) = metrics(tmp_path / "run")
    assert line["train/completions/clipped_ratio"] == 1 and line["train/grad_norm"] == 0
    assert 0 < line["train/rewards/accuracy/mean"] < 1, "the rewards themselves would teach"
    assert "step 1: every answer was cut at grpo.max_answer=1, none came to its end" in capsys.readouterr().err


def test_prompts_reach_the_model_in_their_mode_and_on_the_day_of_the_configuration(start: Path, tmp_path: Path) -> None:
    """TRL gives all prompts the same template variables, and the template shows the day: another prompt after a resume."""
    from post_training.prepare import prepare
    from post_training.recipes.arguments import training_arguments
    from post_training.recipes.config import RECIPES
    from post_training.recipes.trainers import make_trainer
    from smol_config import load

    rows = [
        {"prompt": "Why?", "answer": "1", "chat_template_kwargs": {"enable_thinking": mode}}
        for mode in (True, False, True, False)
    ]
    path = grpo_config(tmp_path, start, {"data": {"template": "hybrid", "max_length": 256}}, mode="data")
    write_rows(tmp_path / "prompts.jsonl", rows)
    config = load(RECIPES["grpo"], path)
    trainer = make_trainer(config, training_arguments(config), prepare(config, tmp_path / "data"))
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch) == 32 and [row["prompt"] for row in batch[:8]] == [batch[0]["prompt"]] * 8
    ids, *_ = trainer._tokenize_prompts([row["prompt"] for row in batch])
    for row, text in zip(batch, trainer.processing_class.batch_decode(ids), strict=True):
        assert "Today Date: 01 July 2025" in text and f"Reasoning Mode: /{row['mode']}\n" in text
        assert text.endswith("</think>\n") == (row["mode"] == "no_think")
