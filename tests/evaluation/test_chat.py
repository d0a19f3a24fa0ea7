"""`python -m evaluation chat`: lines in, answers out; modes, system message, tools; what it says when it cannot."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from evaluation.__main__ import main
from evaluation.talk import Model
from smol_answers import Answer, parse

Talk = Callable[..., Any]


@pytest.fixture
def talk(chat_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """talk(lines, *options) -> what was written to stdout and stderr."""

    def run(lines: list[str], *options: str, folder: Path = chat_folder) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        assert main(["chat", str(folder), "--temperature", "0", *options]) == 0
        return capsys.readouterr()

    return run


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """(what the model read, what it is to answer, one after another); the last answer is given again for ever."""
    read: list[str] = []
    answers = ["Aye."]

    def answer(self: Model, prompt: str, settings: Any, show: Callable[[str], None]) -> Answer:
        read.append(prompt)
        text = answers.pop(0) if len(answers) > 1 else answers[0]
        show(text)
        return parse(text)

    monkeypatch.setattr(Model, "answer", answer)
    return read, answers


def test_an_answer_is_what_the_model_generates_from_the_rendered_conversation(
    talk: Talk, chat_folder: Path, tmp_path: Path
) -> None:
    """By the folder's generation_config.json: with the penalty a model that was never trained does not only repeat itself."""
    folder = shutil.copytree(chat_folder, tmp_path / "chat")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 2.0}))
    said = talk(["Hello!", "And you?"], "--system", "Be brief.", "--max-new-tokens", "12", folder=folder).out
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "system", "content": "Be brief."}]
    expected = ""
    for line in ("Hello!", "And you?"):
        messages.append({"role": "user", "content": line})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, do_sample=False, max_new_tokens=12)
        text = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.strip()
        expected += text + "\n"
        messages.append({"role": "assistant", "content": text})
    assert said == expected


def test_modes_and_the_system_message_are_switched_while_talking(talk: Talk, prompts: tuple[list[str], list[str]]) -> None:
    read, answers = prompts
    answers[:] = ["<think>\nHm.\n</think>\nAye.", "Nay."]
    lines = ["one", "/no_think", "two", "/system Be a pirate. /think", "three", "/reset", "four", "/quit", "five"]
    said = talk(lines, "--system", "Be brief.")
    one, two, three, four = read
    assert "Reasoning Mode: /think" in one and "Be brief." in one and one.endswith("one<|im_end|>\n<|im_start|>assistant\n")
    assert "Reasoning Mode: /no_think" in two and "<think>\nHm.\n</think>\nAye.<|im_end|>" in two
    assert (
        "Reasoning Mode: /think" in three and "Be a pirate.\n" in three.replace("<|im_end|>", "\n") and "Be brief" not in three
    )
    assert "Nay.<|im_end|>" in three and "Be a pirate." in four and "one" not in four and "Nay." not in four
    assert said.out == "<think>\nHm.\n</think>\nAye.\nNay.\nNay.\nNay.\n" and "\x1b" not in said.out
    assert "[system message: Be a pirate.]" in said.err and "[the conversation begins anew]" in said.err


def test_calls_are_shown_and_their_results_typed(talk: Talk, prompts: tuple[list[str], list[str]], tmp_path: Path) -> None:
    read, answers = prompts
    calls = [f'<tool_call>\n{{"name": "tide", "arguments": {{"port": "{port}"}}}}\n</tool_call>' for port in ("Brest", "Cork")]
    answers[:] = ["\n".join(calls), "Both ebb."]
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "tide", "parameters": {"type": "object"}}]))
    said = talk(["Which tide?", "ebb", "ebb, too"], "--tools", str(tools))
    assert 'type the result of tide({"port": "Brest"}):' in said.err and 'tide({"port": "Cork"}):' in said.err
    first, second = read
    assert '<tools>\n{"name": "tide"' in first
    assert "\n".join(calls) in second and "<tool_response>\nebb\n</tool_response>" in second and "ebb, too" in second
    assert said.out.endswith("Both ebb.\n")


def test_a_mode_in_the_system_message_holds_and_a_path_is_no_command(
    talk: Talk, prompts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    read, answers = prompts
    answers[:] = ['<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>', "Aye."]
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "tide"}]')
    talk(["/etc/hosts or /etc/passwd?", "/reset", "And now?"], "--system", "Be brief. /no_think", "--tools", str(tools))
    first, second = read
    assert "/etc/hosts or /etc/passwd?" in first and "Reasoning Mode: /no_think" in first
    assert "And now?<|im_end|>" in second and "tool_response" not in second, "its result is not waited for any more"


def test_a_seed_makes_a_talk_that_can_be_had_again(talk: Talk) -> None:
    hot = ("--temperature", "5", "--max-new-tokens", "8", "--seed")
    first, again, other = (talk(["Hello!"], *hot, seed).out for seed in ("0", "0", "4"))
    assert first == again != other


def test_what_cannot_be_answered_is_said_and_the_talk_goes_on(talk: Talk, prompts: tuple[list[str], list[str]]) -> None:
    read, answers = prompts
    answers[:] = ["<think>\nHm", "<tool_call>tide</tool_call>", "Aye."]
    said = talk(["/thnik", "one", "two", "", "three"]).err
    assert "[/thnik is no command; did you mean '/think'" in said
    assert "the reasoning did not end within" in said and "1 tool calls are not JSON" in said
    assert len(read) == 3


def test_a_conversation_longer_than_the_model_reads_is_said(talk: Talk) -> None:
    said = talk(["word " * 600, "Hello!"], "--max-new-tokens", "2")
    assert "tokens of the 512 that the model reads; begin anew with /reset" in said.err
    assert said.out.count("\n") >= 1, "the long message is forgotten"


def test_an_answer_can_be_interrupted(
    talk: Talk, prompts: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, answer = prompts[0], Model.answer

    def interrupted(self: Model, prompt: str, *rest: Any) -> Answer:
        if "long" in prompt:
            raise KeyboardInterrupt
        return answer(self, prompt, *rest)

    monkeypatch.setattr(Model, "answer", interrupted)
    said = talk(["a long one", "another"])
    assert "[interrupted; your last line is forgotten]" in said.err and said.out == "Aye.\n"
    assert len(read) == 1


def test_the_result_of_a_call_can_be_typed_again_after_an_interruption(
    talk: Talk, prompts: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, answers = prompts
    answers[:] = ['<tool_call>{"name": "tide", "arguments": {}}</tool_call>', "It is high."]
    answer = Model.answer

    def interrupted(self: Model, prompt: str, *rest: Any) -> Answer:
        if "lwo" in prompt:
            raise KeyboardInterrupt
        return answer(self, prompt, *rest)

    monkeypatch.setattr(Model, "answer", interrupted)
    said = talk(["How is the tide?", "lwo", "low"])
    assert said.out.endswith("It is high.\n") and "[interrupted" in said.err
    assert len(read) == 2 and "<tool_response>\nlow\n</tool_response>" in read[1] and read[1].count("tool_response>") == 2


def test_reasoning_is_dim_on_a_terminal(
    talk: Talk, prompts: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts[1][:] = ["<think>\nHm.\n</think>\nAye."]
    monkeypatch.setattr("evaluation.chat._on_terminal", lambda: True)
    assert talk(["one"]).out == "\x1b[2m<think>\nHm.\n</think>\x1b[0m\nAye.\x1b[0m\n"


def test_bad_input_is_one_sentence(
    plain_model: Path, chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(sentence: str, folder: Path, *options: str) -> None:
        assert main(["chat", str(folder), *options]) == 2
        assert sentence in capsys.readouterr().err

    refused(f"{tmp_path} has no config.json; give a Hugging Face folder", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["chat", str(chat_folder), "--top-p", "1.5"])
    assert "argument --top-p: 1.5 is not within 0.001 and 1" in capsys.readouterr().err
    refused(f"{plain_model} has no chat template; give a chat model", plain_model)
    (tmp_path / "config.json").write_text("{}")
    refused(f"{tmp_path} does not load", tmp_path)
    tools = tmp_path / "tools.json"
    refused("cannot be read", chat_folder, "--tools", str(tools))
    tools.write_text('[{"parameters": {}}]')
    refused("is no list of functions; write", chat_folder, "--tools", str(tools))
