"""`drills`: questions that code makes and checks, and what keeps the held-out ones apart."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from post_training import drills
from post_training.__main__ import main


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def words_of(row: dict[str, Any]) -> list[str]:
    """Those that are counted, of any kind of row."""
    question = row.get("question") or (row.get("prompt") or row["messages"])[1]["content"]
    [listed] = re.findall(r"^How many words are in (.*)\?$", question)
    return str(listed).split(", ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drills") / "out"
    assert main(["drills", str(folder), "--rows", "600"]) == 0
    return folder


def test_no_two_neighbours_of_a_held_out_list_stand_side_by_side_in_training(made: Path) -> None:
    rows = [row for name in ("mid", "sft", "pairs", "prompts") for row in read(made, name)]
    trained = {pair for row in rows for pair in pairwise(words_of(row))}
    held_out = {pair for row in read(made, "held_out") for pair in pairwise(words_of(row))}
    assert len(held_out) > 100 and len(trained) > 1000 and not held_out & trained
    assert len(read(made, "held_out")) == drills.HELD_OUT_QUESTIONS


@pytest.mark.parametrize("name", ["mid", "sft", "pairs", "prompts", "held_out"])
def test_no_question_occurs_twice(made: Path, name: str) -> None:
    lists = [tuple(words_of(row)) for row in read(made, name)]
    assert len(set(lists)) == len(lists) and {len(words) for words in lists} == set(range(2, drills.LONGEST + 1))


def test_middle_training_is_thought_through_and_right(made: Path) -> None:
    for row in read(made, "mid"):
        answer, count = row["messages"][-1], len(words_of(row))
        assert answer["content"] == f"The answer is {count}."
        assert answer["reasoning_content"] == ", ".join(map(str, range(1, count + 1))) + "."


def test_the_teacher_is_wrong_and_rambles_as_often_as_its_constants_say(made: Path) -> None:
    rows = read(made, "sft")
    thinks = [row["chat_template_kwargs"]["enable_thinking"] for row in rows]
    answers = [row["messages"][-1] for row in rows]
    wrong = [not answer["content"].endswith(f" {len(words_of(row))}.") for row, answer in zip(rows, answers, strict=True)]
    rambles = [not answer["content"].startswith("The answer") for answer in answers]
    assert sum(wrong) / len(rows) == pytest.approx(drills.WRONG_SHARE, abs=0.06)
    assert sum(rambles) / thinks.count(False) == pytest.approx(drills.RAMBLING_SHARE, abs=0.08)
    assert sum(thinks) / len(rows) == pytest.approx(0.5, abs=0.07)
    assert [("reasoning_content" in answer) for answer in answers] == thinks
    assert not any(think and ramble for think, ramble in zip(thinks, rambles, strict=True))
    for answer in answers:
        thought = answer.get("reasoning_content") or answer["content"].partition(" The answer")[0]
        said = int(answer["content"].split()[-1].rstrip("."))
        assert thought in (", ".join(map(str, range(1, said + 1))) + ".", answer["content"]), "it counts to what it says"


def test_of_a_pair_the_chosen_answer_is_right_and_the_rejected_one_wrong_or_rambling(made: Path) -> None:
    kinds = set()
    for row in read(made, "pairs"):
        think = row["chat_template_kwargs"]["enable_thinking"]
        [chosen], [rejected], right = row["chosen"], row["rejected"], f"The answer is {len(words_of(row))}."
        assert chosen["content"] == right and ("reasoning_content" in chosen) == think == ("reasoning_content" in rejected)
        rambles = rejected["content"].endswith(f" {right}")
        assert rambles or (rejected["content"] != right and rejected["content"].startswith("The answer is "))
        kinds.add((think, rambles))
    assert kinds == {(True, False), (False, False), (False, True)}


def test_prompts_have_their_answers(made: Path) -> None:
    assert all(row["answer"] == str(len(words_of(row))) for name in ("prompts", "held_out") for row in read(made, name))


def test_the_same_seed_makes_the_same_rows_and_another_seed_others() -> None:
    one, same, other = (list(drills.rows_of("sft", 20, seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert drills.draw_drill(random.Random(3), held_out=True) == drills.draw_drill(random.Random(3), held_out=True)


def test_a_folder_that_holds_something_is_refused_and_left_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "mid.jsonl").read_bytes()
    assert main(["drills", str(made), "--rows", "5"]) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    assert (made / "mid.jsonl").read_bytes() == before
