"""The templates: golden texts and masks, the prompt as a prefix of prompt and answer, answers taken apart again."""

from pathlib import Path
from typing import Any

import pytest
from chats import ASK, CALL, SYSTEM, TELL, THINK, TOOL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_training.template import Renderer, load_tokenizer, read_template
from smol_answers import parse
from smol_config import UserError

GOLDEN = Path(__file__).parent / "golden"
RESULT = {"role": "tool", "content": '{"metres": 4.1}'}
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "think": ([ASK, THINK, ASK, THINK], {}),
    "no_think": ([ASK, TELL, ASK, TELL], {"enable_thinking": False}),
    "flag_in_system": ([{"role": "system", "content": "/no_think\nAnswer as a pilot would."}, ASK, TELL], {}),
    "instructions": ([SYSTEM, ASK, TELL], {"enable_thinking": False, "custom_instructions": "Use metres."}),
    "system_override": ([{"role": "system", "content": "/system_override You are a tide table. /think"}, ASK, THINK], {}),
    "xml_tools": ([ASK, CALL, RESULT, TELL], {"enable_thinking": False, "xml_tools": [TOOL]}),
    "two_calls": (
        [ASK, {**CALL, "content": "", "tool_calls": CALL["tool_calls"] * 2}, RESULT, RESULT, TELL],
        {"enable_thinking": False, "tools": [TOOL]},
    ),
    "python_tools": ([ASK, TELL], {"enable_thinking": False, "python_tools": ["def tide(place: str) -> float: ..."]}),
    "chatml": ([SYSTEM, ASK, THINK], {}),
}


@pytest.fixture(scope="module")
def chatml(chat_folder: Path) -> Any:
    return load_tokenizer(str(chat_folder), "chatml")


def marked(text: str, spans: list[tuple[int, int]]) -> str:
    for begin, end in reversed(spans):
        text = f"{text[:begin]}⟦{text[begin:end]}⟧{text[end:]}"
    return text


@pytest.mark.parametrize("name", CHATS)
def test_text_and_trained_part_are_the_golden_ones(name: str, tokenizer: Any, chatml: Any) -> None:
    messages, options = CHATS[name]
    rendered = Renderer(chatml if name == "chatml" else tokenizer, "01 July 2025")(messages, **options)
    assert marked(*rendered) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CHATS)
def test_ids_and_mask_are_those_of_transformers(name: str, tokenizer: Any, chatml: Any) -> None:
    messages, options = CHATS[name]
    own = chatml if name == "chatml" else tokenizer
    render = Renderer(own, "01 July 2025")
    ids, spans = render.encode([render(messages, **options)])[0]
    theirs = own.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, today_date="01 July 2025", **options
    )
    assert ids == theirs["input_ids"]
    assert [int(any(begin <= i < end for begin, end in spans)) for i in range(len(ids))] == theirs["assistant_masks"]


@pytest.mark.parametrize("name", CHATS)
def test_the_stop_token_is_trained_and_nothing_after_it(name: str, tokenizer: Any, chatml: Any) -> None:
    messages, options = CHATS[name]
    render = Renderer(chatml if name == "chatml" else tokenizer)
    ids, spans = render.encode([render(messages, **options)])[0]
    assert len(spans) == sum(message["role"] == "assistant" for message in messages)
    assert all(ids[end - 1] == tokenizer.convert_tokens_to_ids("<|im_end|>") for _, end in spans)
    assert all(tokenizer.decode(ids[end : end + 1]) == "\n" for _, end in spans)


def test_the_stop_token_is_trained_by_the_measure_of_trl(tokenizer: Any) -> None:
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    assert is_chat_template_stop_token_trained(tokenizer)


WORDS = st.text(alphabet=st.sampled_from("ab \n\tZ.é中🙂{}<>/\"'\u0301"), max_size=12)
SPOKEN = WORDS.filter(str.strip)


def test_the_tokenizers_differ_in_what_becomes_of_new_lines(tokenizer: Any, newline_tokenizer: Any) -> None:
    assert [len(one("a\n\nb", add_special_tokens=False)["input_ids"]) for one in (tokenizer, newline_tokenizer)] == [4, 3]


@pytest.mark.parametrize("kind", ["tokenizer", "newline_tokenizer"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    system=st.none() | SPOKEN,
    turns=st.lists(st.tuples(SPOKEN, WORDS, WORDS), min_size=1, max_size=3),
    think=st.booleans(),
    tools=st.booleans(),
)
def test_the_prompt_is_a_prefix_in_tokens_and_the_trained_part_begins_where_it_ends(
    request: pytest.FixtureRequest,
    kind: str,
    system: str | None,
    turns: list[tuple[str, str, str]],
    think: bool,
    tools: bool,
) -> None:
    tokenizer = request.getfixturevalue(kind)
    messages = [{"role": "system", "content": system}] if system else []
    render = Renderer(tokenizer, "01 July 2025")
    options = {"enable_thinking": think, "xml_tools": [TOOL] if tools else None}
    for question, reasoning, answer in turns:
        messages.append({"role": "user", "content": question})
        prompt = render.encode([render(messages, prompt=True, **options)])[0]
        messages.append({"role": "assistant", "content": answer} | ({"reasoning_content": reasoning} if think else {}))
        full = render.encode([render(messages, **options)])[0]
        assert full.ids[: len(prompt.ids)] == prompt.ids
        begin, end = full.spans[-1]
        assert begin == len(prompt.ids) and full.spans[:-1] == prompt.spans
        said = parse(tokenizer.decode(full.ids[begin:end]))
        assert said.content == answer.strip() and (said.reasoning or "") == (reasoning.strip() if think else "")


# --- the system message ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("custom", [None, "", "Use metres."])
@pytest.mark.parametrize("think", [True, False])
def test_the_system_message_reaches_the_model_whatever_the_instructions_are(tokenizer: Any, custom: Any, think: bool) -> None:
    text = Renderer(tokenizer)([SYSTEM, ASK], custom_instructions=custom, enable_thinking=think).text
    assert SYSTEM["content"] in text and (custom or "") in text and "None" not in text


@pytest.mark.parametrize(
    "options", [{}, {"xml_tools": [TOOL]}, {"python_tools": ["def f(): ..."]}, {"xml_tools": [], "tools": None}]
)
def test_the_system_block_is_closed_with_and_without_tools(tokenizer: Any, options: dict[str, Any]) -> None:
    text = Renderer(tokenizer)([ASK], **options).text
    assert text.count("<|im_start|>") == text.count("<|im_end|>") == 2
    assert "<|im_end|>\n<|im_start|>user\n" in text


def test_a_flag_is_a_word_of_its_own_and_wins_over_the_option(tokenizer: Any) -> None:
    render = Renderer(tokenizer)
    text = render([{"role": "system", "content": "See /think/tank and /thinking."}, ASK], enable_thinking=False).text
    assert "Reasoning Mode: /no_think" in text and "See /think/tank and /thinking." in text
    text = render([{"role": "system", "content": "Be brief. /think"}, ASK], enable_thinking=False).text
    assert "Reasoning Mode: /think" in text and "Be brief.<|im_end|>" in text


def test_tools_by_the_standard_name_are_xml_tools(tokenizer: Any) -> None:
    render = Renderer(tokenizer, "01 July 2025")
    standard = tokenizer.apply_chat_template([ASK], tools=[TOOL], tokenize=False, today_date="01 July 2025")
    assert standard == render([ASK], xml_tools=[TOOL]).text


def test_content_may_come_in_parts(tokenizer: Any) -> None:
    render = Renderer(tokenizer)
    parts = [{"type": "text", "text": "Which tide "}, {"type": "text", "text": "comes next?"}]
    assert render([{"role": "user", "content": parts}]) == render([ASK])


def test_the_date_is_the_days_where_none_is_given(tokenizer: Any) -> None:
    from datetime import datetime

    assert f"Today Date: {datetime.now().strftime('%d %B %Y')}" in Renderer(tokenizer)([ASK]).text


def test_reasoning_stays_in_all_turns_also_when_the_mode_changes(tokenizer: Any) -> None:
    text = Renderer(tokenizer)([ASK, THINK, ASK, TELL], enable_thinking=False).text
    assert text.count("It is high water now.") == 1
    assert text.count("<think>\n\n</think>\nThe ebb.") == 1 and text.count("<think>") == 2


@pytest.mark.parametrize("turns", [[{"role": "judge", "content": "x"}], [ASK, SYSTEM]])
def test_a_role_that_the_template_does_not_know_is_refused(tokenizer: Any, turns: Any) -> None:
    with pytest.raises(Exception, match="is none of user, assistant, tool"):
        Renderer(tokenizer)(turns)


# --- answers -----------------------------------------------------------------------------------------------------------------


def test_a_rendered_call_parses_as_it_was_made(tokenizer: Any) -> None:
    chat = [ASK, {**CALL, "reasoning_content": "The table knows.", "tool_calls": CALL["tool_calls"] * 2}]
    text, spans = Renderer(tokenizer)(chat)
    answer = parse(text[slice(*spans[0])])
    assert answer.reasoning == "The table knows." and answer.closed and answer.content == "I look it up."
    assert answer.tool_calls == [{"name": "tide", "arguments": {"place": "Brügge", "hours": [1, 2]}}] * 2


def test_a_template_that_is_not_there_is_named_with_near_ones(chat_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.template=hybird is neither .* did you mean 'hybrid'"):
        read_template("hybird")
    with pytest.raises(UserError, match=r"model=nowhere is not a folder"):
        load_tokenizer("nowhere", "hybrid")
    with pytest.raises(UserError, match=r"its tokenizer does not load"):
        load_tokenizer(str(tmp_path), "hybrid")


def test_the_models_own_template_is_used_where_it_has_one(chat_folder: Path, base_model: Path) -> None:
    assert load_tokenizer(str(chat_folder), "model").chat_template == read_template("hybrid")
    with pytest.raises(UserError, match=r"data.template=model: the tokenizer of .*base has no chat template"):
        load_tokenizer(str(base_model), "model")
