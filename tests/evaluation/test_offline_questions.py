"""The questions made for the offline suites: the same for the same seed, answers that are right, answers that code verifies."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from evaluation.offline import conversations, instructions, needle, passages, symbols


def rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in made["test"]]


def test_the_same_seed_makes_the_same_questions_and_another_makes_others(corpus: Path, plain_model: Path) -> None:
    text = str(corpus / "text" / "held_out")
    spots = {"pretrained": str(plain_model), "lengths": [256], "depths": [0.5], "each": 3}
    made = {
        "passages": lambda seed: passages.passages(text=text, domain="docs", characters=500, most=5, seed=seed),
        "cloze": lambda seed: passages.cloze(text=text, domain="docs", questions=20, seed=seed),
        "sums": lambda seed: symbols.sums(questions=20, largest=89, seed=seed),
        "copies": lambda seed: symbols.copies(questions=20, words=6, seed=seed),
        "needle": lambda seed: needle.questions(**spots, seed=seed),
        "instructions": lambda seed: instructions.questions(questions=20, seed=seed),
        "think_follow": lambda seed: conversations.think_follow(questions=20, seed=seed),
    }
    for name, make in made.items():
        assert rows(make(0)) == rows(make(0)) != rows(make(1)), name


def test_a_cloze_question_has_its_own_continuation_once_among_others_of_its_domain(corpus: Path) -> None:
    text = corpus / "text" / "held_out"
    whole = "\n".join(json.loads(line)["text"] for file in (text / "code").glob("*.jsonl") for line in file.open())
    made = rows(passages.cloze(text=str(text), domain="code", questions=50, seed=0))
    for row in made:
        right = row["continuations"][row["answer"]]
        assert f"{row['beginning']} {right}" in whole and row["continuations"].count(right) == 1
        assert all(continuation in whole for continuation in row["continuations"])
    assert len({row["answer"] for row in made}) == 4


def test_passages_are_whole_words_of_about_the_length(corpus: Path) -> None:
    for piece in passages.cut(corpus / "text" / "held_out" / "docs", 300):
        assert 300 <= len(piece) < 400 or (" " not in piece[300:] and "\n" not in piece[300:])
        assert piece == piece.strip()


def test_text_that_is_missing_or_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \*.jsonl; give the folder with one folder of JSON lines a domain"):
        passages.cut(tmp_path, 10)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.jsonl").write_text('{"text": "short"}\n')
    with pytest.raises(ValueError, match="has text for 0 questions; four are needed for their wrong answers"):
        passages.cloze(text=str(tmp_path), domain="code", questions=4, seed=0)


def test_sums_are_right_and_their_wrong_answers_differ() -> None:
    for row in rows(symbols.sums(questions=50, largest=89, seed=0)):
        a, b = map(int, row["sum"].split(" + "))
        assert int(row["choices"][row["answer"]]) == a + b == int(row["value"])
        assert len(set(row["choices"])) == 4
        assert all(eval(line.replace("=", "==")) for line in row["solved"].splitlines())


def test_a_copy_asks_for_the_last_word_of_a_sequence_shown_once() -> None:
    for row in rows(symbols.copies(questions=50, words=6, seed=0)):
        words = row["shown"].split()
        assert words[:5] == words[6:] and row["choices"][row["answer"]] == words[5]
        assert len(set(row["choices"])) == 4 and set(row["choices"]) <= set(words)


def test_a_needle_stands_at_its_depth_in_a_text_of_its_length(plain_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain_model)
    made = rows(needle.questions(pretrained=str(plain_model), lengths=[200, 500], depths=[0.0, 0.5, 1.0], each=4, seed=0))
    assert len(made) == 24
    for row in made:
        right = row["choices"][row["answer"]]
        told = f"The secret word of the {row['place']} is {right}."
        hay = row["haystack"].removeprefix(needle.INTRODUCTION)
        assert hay.count(told) == 1 and all(f"is {choice}." in hay for choice in row["choices"])
        assert hay.index(told) / (len(hay) - len(told)) == pytest.approx(row["depth"], abs=0.12)
        asked = f"{row['haystack']}\nThe secret word of the {row['place']} is {right}"
        assert row["length"] - 30 < len(tokenizer(asked)["input_ids"]) <= row["length"]
    with pytest.raises(ValueError, match=r"data.lengths: 40 tokens have no room for the needles; the least is "):
        needle.questions(pretrained=str(plain_model), lengths=[40], depths=[0.0], each=1, seed=0)
    with pytest.raises(ValueError, match=r"data.lengths: 600 tokens are more than the model reads, 512"):
        needle.questions(pretrained=str(plain_model), lengths=[40, 600], depths=[0.0], each=1, seed=0)


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("at_most", 3, "one two three", "one two three four"),
        ("at_least", 3, "one two three", "one two"),
        ("keyword", "water", "Cold Water.", "waters run"),
        ("no_commas", True, "one two", "one, two"),
        ("lowercase", True, "all small.", "Not small."),
        ("sentences", 2, "One here. Two here!", "One. Two. Three."),
        ("bullets", 2, "- a\n- b", "- a\n* b"),
        ("title", True, "<<The sea>> it is", "<< >\nsea"),
        ("ending", "That is all.", "Well. That is all.", "That is all. Well."),
    ],
)
def test_every_kind_of_constraint_tells_following_from_not(kind: str, value: Any, good: str, bad: str) -> None:
    row = {"constraints": json.dumps([[kind, value]])}
    assert instructions.score(row, [good]) == {"followed": 1, "all_followed": 1}
    assert instructions.score(row, [bad]) == {"followed": 0, "all_followed": 0}
    assert instructions.score(row, [" "])["followed"] == 0, "silence follows nothing"


def test_every_kind_of_constraint_is_tested_and_asked_for() -> None:
    asked = {kind for row in rows(instructions.questions(questions=60, seed=0)) for kind, _ in json.loads(row["constraints"])}
    cases = test_every_kind_of_constraint_tells_following_from_not.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert asked == set(instructions.KINDS) == {kind for kind, *_ in cases}
    row = {"constraints": json.dumps([["no_commas", True], ["lowercase", True]])}
    assert instructions.score(row, ["No"]) == {"followed": 0.5, "all_followed": 0}


def test_conversations_answer_their_earlier_turns_in_the_mode_that_they_ask_for() -> None:
    made = rows(conversations.think_follow(questions=16, seed=0))
    assert {row["turns"] for row in made} == {1, 2, 3, 4} and sum(row["wanted"] == "think" for row in made) == 8
    for row in made:
        assert row["messages"][-1]["content"].endswith(f" /{row['wanted']}")
        for user, answer in zip(row["messages"][:-1:2], row["messages"][1::2], strict=True):
            assert answer["content"].startswith("<think>\n\n</think>") == user["content"].endswith(" /no_think")


@pytest.mark.parametrize(
    ("response", "think", "no_think", "answered"),
    [
        ("<think>\nIt is.\n</think>\nParis.", 1, 0, 1),
        ("<think>\n\n</think>\nParis.", 0, 1, 1),
        ("Paris.", 0, 1, 1),
        ("<think>\nIt never ends", 1, 0, 0),
        ("<think>It is.</think>", 1, 0, 0),
    ],
)
def test_a_response_follows_the_mode_if_it_reasons_when_asked(response: str, think: int, no_think: int, answered: int) -> None:
    for wanted, followed in (("think", think), ("no_think", no_think)):
        assert conversations.score({"wanted": wanted}, [response]) == {"mode_followed": followed, "answered": answered}


def test_generators_need_no_package_of_this_repository() -> None:
    """lm-eval's own command loads them by their files, from anywhere."""
    for module in (passages, symbols, needle, instructions, conversations):
        assert isinstance(module, ModuleType) and module.__file__
        assert importlib.util.find_spec("evaluation") and "from evaluation" not in Path(module.__file__).read_text()
