"""`python -m evaluation vibe`, and `watch --vibe`: the same words to several models, side by side, the same each time."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation import watch as watching
from evaluation.__main__ import main
from evaluation.talk import Model
from evaluation.vibe import PROMPTS, TODAY, ask, load_vibe, page
from smol_answers import parse

WORDS = {
    "max_new_tokens": 6,
    "prompts": [
        {"name": "a <pirate>", "system": "Be a pirate.", "turns": ["Hello!", "And now?"], "must_show": "arrr"},
        {"name": "any", "modes": ["no_think"], "turns": ["Hello!"], "must_show": "."},
    ],
}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump(WORDS))
    return path


def test_checkpoints_stand_side_by_side_the_same_each_time(chat_folder: Path, words: Path, tmp_path: Path) -> None:
    other = shutil.copytree(chat_folder, tmp_path / "other")
    for name in ("one", "two"):
        given = [str(chat_folder), str(other), "--prompts", str(words), "--output", str(tmp_path / f"{name}.html")]
        assert main(["vibe", *given]) == 0
    text = (tmp_path / "one.html").read_text()
    assert text == (tmp_path / "two.html").read_text()
    assert f"<th>{chat_folder}</th><th>{other}</th>" in text and "http" not in text and "<script" not in text
    assert text.count("<tr>") == 4, "a row a prompt and mode, below the head"
    assert "a &lt;pirate&gt;" in text and "<pirate>" not in text and "system: Be a pirate." in text
    assert text.count("✗ does not show arrr") == 8, "two turns, two modes, two models"


def test_an_instruction_that_shows_and_a_system_message_that_is_lost_are_marked(
    chat_folder: Path, words: Path, tmp_path: Path
) -> None:
    vibe, folder = load_vibe(words), tmp_path / "deaf"
    shutil.copytree(chat_folder, folder)
    column = ask(chat_folder, vibe)
    assert not any("loses" in fault for row in column["rows"] for answer in row for fault in answer["faults"])
    for answer in column["rows"][0]:
        answer["faults"] = []
    assert page(vibe, [column]).count("✓ shows arrr") == 2
    (folder / "chat_template.jinja").write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    assert page(vibe, [ask(folder, vibe)]).count("✗ the chat template loses the system message") == 4


def test_a_conversation_that_outgrows_the_model_ends_there(chat_folder: Path, words: Path) -> None:
    vibe = load_vibe(words)
    [prompt, _] = vibe.prompts
    long = prompt.model_copy(update={"turns": ("Hello!", "word " * 600, "never asked"), "modes": ("no_think",)})
    [row] = ask(chat_folder, vibe.model_copy(update={"prompts": (long,)}))["rows"]
    assert len(row) == 2 and "tokens of the 512 that the model reads" in row[1]["faults"][0]


def test_the_day_does_not_change_the_answers(chat_folder: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, answer = [], Model.answer

    def noted(self: Model, prompt: str, *rest: Any) -> Any:
        prompts.append(prompt)
        return answer(self, prompt, *rest)

    monkeypatch.setattr(Model, "answer", noted)
    ask(chat_folder, load_vibe(words))
    assert len(prompts) == 5 and all(f"Today Date: {TODAY}\n" in prompt for prompt in prompts)


def test_what_was_said_goes_on_and_what_an_answer_lacks_is_told(
    chat_folder: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, settings = [], []
    called = "Well.<tool_call>{}</tool_call>"
    said = iter(["<think>arrr</think>Ahoy", "<think>arrr", "ARRR <b>", "Arrr", f"<think>a</think>{called}"])

    def answer(self: Model, prompt: str, given: Any) -> Any:
        read.append(prompt)
        settings.append((given.do_sample, given.max_new_tokens))
        return parse(next(said))

    monkeypatch.setattr(Model, "answer", answer)
    column = ask(chat_folder, vibe := load_vibe(words))
    faults = [[row_answer["faults"] for row_answer in row] for row in column["rows"]]
    lacking = "does not show arrr"
    assert faults == [[[lacking], ["the reasoning does not end", lacking]], [[], []], [[]]]
    assert "Ahoy<|im_end|>" in read[1] and "And now?<|im_end|>" in read[1]
    assert ["/no_think" in prompt for prompt in read] == [False, False, True, True, True]
    assert set(settings) == {(False, 6)}
    assert column["rows"][2][0]["content"] == called, "calls are read, too"
    assert "ARRR &lt;b&gt;" in page(vibe, [column]) and "<b>ARRR" not in page(vibe, [column])


def test_the_words_that_are_asked_try_both_modes_personas_and_several_turns() -> None:
    vibe = load_vibe(PROMPTS)
    assert {mode for _, mode in vibe.rows()} == {"think", "no_think"}
    assert sum(bool(prompt.system and prompt.must_show) for prompt in vibe.prompts) >= 3
    assert any(len(prompt.turns) > 2 for prompt in vibe.prompts)


def test_watch_adds_a_column_a_checkpoint(
    chat_folder: Path,
    plain_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: Path,
    write_suite: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, asked = tmp_path / "run", []

    def call(_: Any, function: Any, model: Path, *rest: Any, threads: int, stop: Any) -> Any:
        if function is watching._score:
            rest[-1].mkdir(parents=True)
            return {"results": {}, "not_run": {}}
        asked.append(model.name)
        return function(model, *rest)

    monkeypatch.setattr(watching.background, "call", call)
    monkeypatch.setattr(watching, "PROMPTS", words)
    command = ["watch", str(run), "--suite", str(write_suite([{"name": "task"}])), "--once", "--vibe"]
    for step in (5, 10):
        shutil.copytree(chat_folder, run / "hf" / f"step_{step}")
        assert main(command) == 0
    page = run / "evaluations" / "vibe.html"
    assert asked == ["step_5", "step_10"] and "<th>step_5</th><th>step_10</th>" in page.read_text()
    page.unlink()  # as if killed before it
    assert main(command) == 0
    assert len(asked) == 2 and page.exists()
    words.write_text(yaml.safe_dump(WORDS | {"max_new_tokens": 5}))
    assert main(command) == 0
    assert asked[2:] == ["step_5", "step_10"], "other words are asked anew"
    shutil.copytree(plain_model, run / "hf" / "step_15")
    assert main(command) == 2
    assert "1 not evaluated: step_15: " in (told := capsys.readouterr().err) and "has no chat template" in told


def test_bad_input_is_one_sentence_and_nothing_is_written(
    chat_folder: Path, tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(sentence: str, output: Path = tmp_path / "out.html") -> None:
        assert main(["vibe", str(chat_folder), "--output", str(output), "--prompts", str(words)]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out.html").exists()

    refused("is there already; give another name", words)
    words.write_text(json.dumps({"prompts": [{"name": "a", "turns": ["b"], "must_show": "("}]}))
    refused("'(' is no regular expression")
