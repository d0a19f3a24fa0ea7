"""What an answer is worth, and how answers reach the rewards from TRL."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpo_kit import grpo_config

from post_training import rewards
from post_training.recipes import grpo
from post_training.recipes.config import RECIPES, GrpoConfig
from post_training.rewards import exact, format_reward, length_reward, maths, reply
from smol_config import UserError, load


@pytest.mark.parametrize(
    ("mode", "text", "worth"),
    [
        ("think", "<think>\nHigh water.\n</think>\nThe ebb.", 1),
        ("think", "<think>\nHigh water.\n</think>\n", 0),  # no answer
        ("think", "<think>\nHigh water, so the ebb.", 0),  # not closed
        ("think", "<think>\n\n</think>\nThe ebb.", 0),  # nothing thought
        ("think", "The ebb.", 0),
        ("think", "<think>a</think>b<think>c</think>d", 0),  # thinks again in the answer
        ("no_think", "The ebb.", 1),
        ("no_think", "<think>\n \n</think>\nThe ebb.", 1),
        ("no_think", "<think>\nHigh water.\n</think>\nThe ebb.", 0),
        ("no_think", "High water.</think>The ebb.", 0),
        ("no_think", " \n", 0),
    ],
)
def test_format_is_what_the_mode_asks_for(mode: Any, text: str, worth: int) -> None:
    assert format_reward(reply(text, mode, 9)) == worth


def test_what_stands_in_the_prompt_belongs_to_the_answer() -> None:
    assert format_reward(reply("High water.</think>The ebb.", "think", 9, opening="<think>\n")) == 1
    assert format_reward(reply("The ebb.", "no_think", 9, opening="<think>\n\n</think>\n")) == 1


def test_length_costs_more_and_more_between_the_ends_of_its_interval() -> None:
    assert [length_reward(tokens, (10, 20)) for tokens in (5, 10, 15, 20, 99)] == [0, 0, -0.5, -1, -1]
    assert length_reward(10**6, None) == 0


@pytest.mark.parametrize(
    ("gold", "said", "same"),
    [
        ("Paris", "paris.", True),
        ("Paris", "It lies north, so the answer is **Paris**.", True),
        ("Paris", r"Not Rome: \boxed{Paris}, the answer is known.", True),
        ("Paris", "It is not Paris", False),
        ("New  York", "Answer: new york", True),
        ("B", "C", False),
    ],
)
def test_words_are_compared_as_words(gold: str, said: str, same: bool) -> None:
    assert exact(gold, said) is same


@pytest.mark.parametrize(
    ("gold", "said", "same"),
    [
        ("72", "So 70 + 2 = 72.", True),
        ("1/2", r"$\frac{1}{2}$", True),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
        (r"2\sqrt{3}", "2", False),  # bare LaTeX read as its first number
        ("4", r"\boxed{5}, and not 4", False),
        ("4", "", False),
        ("Paris", "Pairs", None),
        (" ", "4", None),
    ],
)
def test_mathematics_is_compared_by_value_and_words_are_not_mathematics(gold: str, said: str, same: bool | None) -> None:
    assert maths(gold, said) is same


# --- as TRL calls them -------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, chat_folder: Path) -> GrpoConfig:
    chosen = {"format": {}, "accuracy": {"exact": ["words"]}, "length": {"no_think": [2, 4]}}
    loaded = load(RECIPES["grpo"], grpo_config(tmp_path, chat_folder, {"rewards": chosen}))
    assert isinstance(loaded, GrpoConfig)
    return loaded


def test_answers_are_read_from_their_tokens(config: GrpoConfig, tokenizer: Any) -> None:
    """Without the stop token, which a cut answer has not."""
    texts = ["<think>Hm.</think>yes<|im_end|>", "yes<|end_of_text|>", "no one knows", "It is 4.<|im_end|>"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    columns = {
        "mode": ["think", "no_think", "no_think", "no_think"],
        "dataset": ["words", "words", "other", "sums"],
        "answer": ["yes", "yes", None, "4"],
    }
    logged: dict[str, float] = {}
    found = {
        reward.__name__: reward(prompts=[], completions=[], completion_ids=ids, log_metric=logged.__setitem__, **columns)
        for reward in grpo.reward_functions(config, tokenizer)
    }
    assert found["format"] == [1, 1, 1, 1] and found["accuracy"] == [1, 1, None, 1]
    assert found["length"] == [0, *(length_reward(len(one), (2, 4)) for one in ids[1:])]
    assert len(ids[1]) > 2 and logged["rewards/accuracy/judged"] == pytest.approx(3 / 4)


def formats(config: GrpoConfig, tokenizer: Any, text: str) -> list[float]:
    """What the reward `format` says of an answer to a prompt in /think."""
    judge = grpo.reward_functions(config, tokenizer)[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return judge(prompts=[], completions=[], completion_ids=[ids], mode=["think"], dataset=["words"])  # type: ignore[no-any-return]


def test_a_thought_between_special_tokens_is_read(config: GrpoConfig, tokenizer: Any) -> None:
    """TRL's text of the answers lacks them."""
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    text = "<think>Hm.</think>yes<|im_end|>"
    ids = special(text, add_special_tokens=False)["input_ids"]
    assert "think" not in special.decode(ids, skip_special_tokens=True)
    assert formats(config, special, text) == [1]


def test_a_thought_that_the_template_begins_belongs_to_the_answer(config: GrpoConfig, tokenizer: Any) -> None:
    assert grpo.openings(tokenizer, "01 July 2025") == {"think": "", "no_think": "<think>\n\n</think>\n"}
    prefilling = copy.deepcopy(tokenizer)
    prefilling.chat_template = tokenizer.chat_template.replace("('' if think else", "('<think>\\n' if think else")
    assert grpo.openings(prefilling, "01 July 2025")["think"] == "<think>\n"
    rest = "Hm.</think>yes<|im_end|>"
    assert formats(config, prefilling, rest) == [1] and formats(config, tokenizer, rest) == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_refused(
    value: float, config: GrpoConfig, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "format_reward", lambda reply: value)
    judge = grpo.reward_functions(config, tokenizer)[0]
    with pytest.raises(
        UserError, match=f"reward format is {value} for an answer to a prompt of dataset words; .* must be finite"
    ):
        judge(prompts=[], completions=[], completion_ids=[[5]], mode=["think"], dataset=["words"])


def test_rewards_that_stay_the_same_are_told_the_first_time_and_when_they_go_on(
    config: GrpoConfig, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    trainer = SimpleNamespace(_logs={"rewards": {}, "prompt": [[]] * 8, "completion": [[{"content": ""}]] * 8})
    watch = grpo.RewardWatch(config, trainer)
    dead = {"rewards/format/equal_groups": 1.0, "rewards/length/equal_groups": 0.5, "completions/clipped_ratio": 0.0}
    logs: Callable[[int], dict[str, float]] = lambda step: dead | {"frac_reward_zero_std": 0.5}  # noqa: E731
    for step in range(1, 21):
        watch.on_log(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None, logs=logs(step))
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[2] for line in told] == ["1:", "10:", "20:"] and all(
        "reward format is the same" in line for line in told
    )
    assert "for 20 logged steps now; give easier or harder prompts, more grpo.answers" in told[-1]
    judged_none = {"rewards/accuracy/judged": 0.0, "rewards/accuracy/mean": math.nan}
    for scalars, sentence in (
        ({"completions/clipped_ratio": 1}, "every answer was cut at grpo.max_answer=4, none came to its end"),
        (judged_none, "step 21: reward accuracy applies to no answer, so that it teaches nothing"),
    ):
        state = SimpleNamespace(is_world_process_zero=True, global_step=21)
        watch.on_log(None, state, None, logs=logs(21) | scalars)
        assert sentence in capsys.readouterr().err


# --- what is refused before training -----------------------------------------------------------------------------------------


OTHER = {"name": "other", "kind": "prompts", "path": "x"}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"data": {"sources": [{"name": "a", "path": "a"}]}},
        {},
        "kind=chat is not for this recipe, which samples answers to kind: prompts",
    ),
    (
        {"train": {"global_batch_size": 24}, "grpo": {"answers": 16}},
        {},
        "global_batch_size=24 answers are not whole groups of grpo.answers=16",
    ),
    ({"rewards": {}}, {}, "rewards: none is chosen; write format, accuracy or length"),
    ({"rewards": {"length": {}}}, {}, "rewards.length.neither no_think nor think has an interval"),
    ({"rewards": {"length": {"think": [4, 4]}}}, {}, r"rewards.length.think=\[4, 4\]: the penalty grows from the first number"),
    ({"rewards": {"length": {"no_think": [1, 9]}}}, {}, r"rewards.length.no_think=\[1, 9\] ends beyond grpo.max_answer=4"),
    ({"rewards": {"format": {"weight": math.inf}}}, {}, "rewards.format.weight: Input should be a finite number"),
    (
        {},
        {"keep": []},
        "rewards.accuracy: source words keeps no column 'answer', so that nothing judges its answers; write keep:",
    ),
    (
        {"rewards": {"accuracy": {"exact": ["wrods"]}}},
        {},
        "rewards.accuracy.exact: 'wrods' is no source that keeps 'answer'; did you mean 'words'",
    ),
]


@pytest.mark.parametrize(("changes", "source", "sentence"), REFUSED)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], source: dict[str, Any], sentence: str, tmp_path: Path, chat_folder: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(RECIPES["grpo"], grpo_config(tmp_path, chat_folder, changes, **source))


def prepared(*golds: str | None) -> Any:
    from datasets import Dataset

    rows = Dataset.from_dict({"dataset": ["words"] * len(golds), "answer": list(golds)})
    return SimpleNamespace(train=rows, held_out=rows.remove_columns("answer"))


@pytest.mark.parametrize(
    ("golds", "sentence"),
    [
        (["4", " "], "dataset words: answer of prepared row 1 is empty, so that no answer can be right"),
        (
            ["4", "Paris"],
            "dataset words: answer='Paris' is nothing that math-verify reads; add the source to rewards.accuracy.exact",
        ),
    ],
)
def test_gold_answers_that_judge_nothing_are_refused(golds: list[str], sentence: str, config: GrpoConfig) -> None:
    assert config.rewards.accuracy
    by_value = config.rewards.model_copy(update={"accuracy": config.rewards.accuracy.model_copy(update={"exact": []})})
    with pytest.raises(UserError, match=sentence):
        grpo.check_prompts(config.model_copy(update={"rewards": by_value}), prepared(*golds))
    grpo.check_prompts(config, prepared("4", "Paris", None))  # as text


def test_prompts_and_answers_beyond_the_models_positions_are_refused(config: GrpoConfig) -> None:
    longer = config.model_copy(update={"grpo": config.grpo.model_copy(update={"max_answer": 400})})
    with pytest.raises(UserError, match=r"data.max_length=128 \+ grpo.max_answer=400 tokens are more than the 512 positions"):
        grpo.check_prompts(longer, prepared("4"))


def test_vllm_asked_for_where_it_is_not_installed_ends_with_93(tmp_path: Path, chat_folder: Path, capsys: Any) -> None:
    from recipe_kit import run

    assert run("grpo", grpo_config(tmp_path, chat_folder), "grpo.vllm.memory=0.4") == 93
    assert (
        "grpo.vllm is set, but vLLM is not installed here; make an environment of requirements-grpo.txt"
        in capsys.readouterr().err
    )
