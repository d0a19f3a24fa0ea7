"""What trains on nothing, or on something else than meant, is refused or warned of: one test for each way to get there."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from chats import ASK, SYSTEM, TELL, TOOL, answered, config, sums, write_rows

from post_training.checks import Finding, template_findings
from post_training.prepare import Prepared, Refused, prepare
from post_training.template import load_tokenizer, read_template

Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(tmp_path: Path, chat_folder: Path) -> Prepare:
    """Prepares rows with settings of the source (kind, mode, max_broken) and of data (the others)."""

    def make(rows: list[dict[str, Any]], **settings: Any) -> Prepared:
        own = {key: settings.pop(key) for key in ("kind", "mode", "max_broken", "share", "tokens") if key in settings}
        source = {"path": str(write_rows(tmp_path / "rows.jsonl", rows)), **own}
        return prepare(config(chat_folder, source, **settings), tmp_path / "out")

    return make


def warnings(prepared: Prepared) -> str:
    return "\n".join(prepared.manifest["warnings"])


# --- rows that cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        ({"messages": [ASK]}, {}, "no assistant turn: 1 of 11 rows; dataset set-0, row 10 of .*rows.jsonl: there is no"),
        ({"messages": [ASK, ASK, TELL]}, {}, "roles out of order: 1 of 11 rows; dataset set-0, row 10 of .*: turn 1 is user"),
        (
            answered("Why?", "So.<|im_end|>"),
            {},
            r"control tokens in text: 1 of 11 rows; .* holds the token <\|im_end\|> as text",
        ),
        (answered("<|im_start|>system", "So."), {}, r"control tokens in text: .*<\|im_start\|>"),
        (answered("Why?", "So.", reasoning_content="Hm."), {"mode": "no_think"}, "reasoning in no_think: 1 of 11 rows"),
    ],
)
def test_a_row_that_cannot_be_used_refuses_training_unless_it_may_be_left_out(
    prepared: Prepare, tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refused, match=f"not fit to train on:\n  {sentence}.*; max_broken allows 0 in all"):
        prepared([*sums(10), row], **settings)
    assert not (tmp_path / "out").exists()
    with_one_less = prepared([*sums(10), row], **settings, max_broken=1)
    assert with_one_less.manifest["train"]["samples"] == 10 and "1 of 11 rows" in warnings(with_one_less)


@pytest.mark.parametrize("rejected", ["b1", "b1 \n"])
def test_a_chosen_equal_to_its_rejected_is_refused(prepared: Prepare, rejected: str) -> None:
    """As they stand in the row, or as the template, which trims them, writes them."""
    rows = [{"prompt": "a", "chosen": f"b{i}", "rejected": rejected} for i in range(3)]
    with pytest.raises(Refused, match="chosen equals rejected: 1 of 3 rows; dataset set-0, row 1 of"):
        prepared(rows, kind="preference")


def test_what_a_template_refuses_is_told_with_its_row(prepared: Prepare, tmp_path: Path) -> None:
    strict = tmp_path / "strict.jinja"
    rule = "{%- if 'dog' in messages[-1].content -%}{{ raise_exception('no dogs') }}{%- endif -%}"
    strict.write_text(rule + read_template("hybrid"))
    with pytest.raises(Refused, match=r"refused by the template: 1 of 2 rows; dataset set-0, row 1 of .*: no dogs"):
        prepared([answered("cat?", "cat"), answered("dog?", "dog")], template=str(strict))


# --- samples with nothing to learn, or too long -----------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_overlong_chats_are_left_out_and_counted_packed_or_not(prepared: Prepare, packing: bool) -> None:
    rows = [*sums(9), answered("Long?", "word " * 400)]
    some = prepared(rows, packing=packing)
    assert some.manifest["train"]["samples"] == 9
    assert "overlong: 1 of 10 rows; dataset set-0, row 9 of" in warnings(some)
    assert "tokens, data.max_length is 256; left out" in warnings(some)


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_a_pair_is_overlong_by_its_longer_answer(prepared: Prepare, longer: str) -> None:
    rows = [{"prompt": f"a{i}", "chosen": "b", "rejected": "c"} for i in range(4)]
    some = prepared([*rows, {"prompt": "a", "chosen": "b", "rejected": "c", longer: "word " * 400}], kind="preference")
    assert some.manifest["train"]["samples"] == 4 and "overlong: 1 of 5 rows; dataset set-0, row 4" in warnings(some)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("chat", sums(5)),
        ("preference", [{"prompt": f"a{i}", "chosen": "b", "rejected": "c"} for i in range(5)]),
        ("prompts", [{"prompt": f"a{i}"} for i in range(5)]),
    ],
)
def test_a_limit_below_every_prompt_is_refused_instead_of_training_on_nothing(
    prepared: Prepare, kind: str, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(Refused, match=r"dataset set-0 gives no sample of its 5 rows; raise its share or data.max_length"):
        prepared(rows, kind=kind, max_length=32)


def test_a_template_that_marks_no_token_of_a_chat_leaves_it_out(prepared: Prepare, tmp_path: Path, chat_folder: Path) -> None:
    """Markers that stand around some answers only: the template's own checks pass, these rows would train nothing."""
    picky = tmp_path / "picky.jinja"
    text = read_template("hybrid").replace("{%- generation -%}", "{%- generation -%}{%- if 'sum' not in answer -%}")
    picky.write_text(text.replace("{%- endgeneration -%}", "{%- endif -%}{%- endgeneration -%}"))
    some = prepared([answered("One?", "1"), answered("Two?", "a sum")], template=str(picky))
    assert "nothing to train on: 1 of 2 rows; dataset set-0, row 1 of" in warnings(some)
    write_rows(tmp_path / "rows.jsonl", [answered("Two?", "a sum")])
    with pytest.raises(Refused, match=r"data\.sources: no token would be trained; see what was left out"):
        prepare(config(chat_folder, {"path": str(tmp_path / "rows.jsonl")}, template=str(picky)), tmp_path / "other")


# --- doubtful samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        (answered("Why?", " \n"), {}, "empty answer: 1 of 11 rows; dataset set-0, row 10"),
        (answered("Why?", "So."), {"mode": "think"}, "think without reasoning: 11 of 11 rows"),
        (answered("Why?", "Hm.</think>So."), {}, "stray think tags: 1 of 11 rows; dataset set-0, row 10"),
        (sums(1)[0], {}, "data.sources: 1 samples stand there more than once, such as one of dataset set-0"),
    ],
)
def test_a_doubtful_sample_is_warned_of(
    prepared: Prepare, row: dict[str, Any], settings: dict[str, Any], sentence: str, capsys: Any
) -> None:
    assert sentence in warnings(prepared([*sums(10), row], **settings))
    assert f"warning: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [("chat_template_kwarg", {"enable_thinking": True}, "chat_template_kwargs"), ("tool", [TOOL], "tools")],
)
def test_a_column_whose_name_is_nearly_right_is_warned_of(prepared: Prepare, column: str, value: Any, wanted: str) -> None:
    some = prepared([*sums(10), answered("Why?", "So.") | {column: value}])
    sentence = f"{column!r} is not read, and there is no {wanted!r}; if it is that, write columns: {{{wanted}: {column}}}"
    found = warnings(some)
    assert "column not read: 1 of 11 rows; dataset set-0, row 10 of" in found and sentence in found


def test_good_data_has_no_warnings(prepared: Prepare) -> None:
    """With columns that are not read and are called nearly like one that is there, or not nearly enough."""
    others = [{}, {"source": "here", "tool_calls": None, "total": 7}, {"tool": [TOOL], "tools": None}]
    assert prepared([row | others[i % 3] for i, row in enumerate(sums(20))]).manifest["warnings"] == []


def test_few_trained_tokens_are_warned_of(prepared: Prepare) -> None:
    assert "of the tokens are trained; the others are prompts" in warnings(prepared([answered("word " * 40, "So.")]))


def test_data_gone_through_many_times_is_warned_of(prepared: Prepare) -> None:
    assert "dataset set-0 is gone through 5.0 times in one epoch" in warnings(prepared(sums(4), share=5))


def test_a_share_that_takes_no_row_is_refused(prepared: Prepare) -> None:
    with pytest.raises(Refused, match="dataset set-0 gives no sample of its 10 rows; raise its share"):
        prepared(sums(10), share=0.01)


def test_a_held_out_prompt_that_is_trained_on_is_refused(tmp_path: Path, chat_folder: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", sums(10))
    same = {"messages": [SYSTEM, {"role": "user", "content": "What is 3 and 3?"}, TELL]}
    other = write_rows(tmp_path / "b.jsonl", [*sums(2, first=50), same])
    settings = config(chat_folder, {"path": str(file)}, held_out=[{"name": "test", "path": str(other)}])
    with pytest.raises(Refused, match=r"1 of 3 samples have a prompt that is trained on, such as one of dataset test"):
        prepare(settings, tmp_path / "out")


def test_a_held_out_document_that_is_trained_on_is_refused(tmp_path: Path, chat_folder: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": "The ebb."}, {"text": "The flood."}])
    other = write_rows(tmp_path / "b.jsonl", [{"text": "High water."}, {"text": "The ebb."}])
    held_out = [{"name": "test", "path": str(other), "kind": "text"}]
    settings = config(chat_folder, {"path": str(file), "kind": "text"}, held_out=held_out)
    with pytest.raises(Refused, match=r"1 of 2 samples have a prompt that is trained on"):
        prepare(settings, tmp_path / "out")


# --- templates --------------------------------------------------------------------------------------------------------------


def spoiled(*changes: tuple[str, str]) -> str:
    text = read_template("hybrid")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def faults(chat_folder: Path, template: str, tokenizer: Any = None, **data: Any) -> list[Finding]:
    tokenizer = copy(tokenizer) if tokenizer else load_tokenizer(str(chat_folder), "hybrid")
    tokenizer.chat_template = template
    return template_findings(tokenizer, config(chat_folder, {"path": "x"}, **data).data)


@pytest.mark.parametrize("template", ["hybrid", "chatml"])
def test_our_templates_have_no_faults(chat_folder: Path, template: str) -> None:
    assert faults(chat_folder, read_template(template)) == []


END = "{{- '<|im_end|>' -}}\n    {%- endgeneration -%}"
HEADER = "{{- '<|im_start|>assistant\\n' -}}\n    {%- if not think and"
TEMPLATE_FAULTS = {
    "no markers": (
        [("{%- generation -%}", ""), ("{%- endgeneration -%}", "")],
        "it has no {% generation %} markers, so that no token would be trained",
    ),
    "stop token outside": (
        [(END, "{%- endgeneration -%}\n    {{- '<|im_end|>' -}}")],
        "the stop token <|im_end|> stands outside the markers",
    ),
    "stop token twice": ([(END, "{{- '<|im_end|><|im_end|>' -}}\n    {%- endgeneration -%}")], "stands twice in a row"),
    "header in the mask": (
        [("{%- generation -%}", ""), (HEADER, "{%- generation -%}" + HEADER)],
        "the trained part does not begin where the generation prompt ends",
    ),
    "header missing from the generation prompt": (
        [("{{- '<|im_start|>assistant\\n' ~ (", "{{- ('' if think else '') ~ (")],
        "the trained part does not begin where the generation prompt ends",
    ),
    "empty thought missing from the generation prompt": (
        [("('' if think else '<think>\\n\\n</think>\\n')", "''")],
        "the trained part does not begin where the generation prompt ends",
    ),
    "another header in the generation prompt": (
        [("{{- '<|im_start|>assistant\\n' ~ (", "{{- '<|im_start|>Assistant\\n' ~ (")],
        "prompt is no prefix of prompt and answer in tokens",
    ),
    "system message dropped": (
        [("{%- set system = text(messages[0].content) -%}", "")],
        "the system message does not reach the model",
    ),
    "instructions None win": (
        [("{%- set instructions = [system", "{%- set instructions = [system if custom_instructions is not defined else ''")],
        "the system message does not reach the model",
    ),
    "does not render": ([("{%- set turns = messages -%}", "{%- set turns = nothing.here -%}")], "does not render a plain chat"),
}


@pytest.mark.parametrize("name", TEMPLATE_FAULTS)
def test_a_template_with_a_fault_is_refused(chat_folder: Path, name: str) -> None:
    changes, sentence = TEMPLATE_FAULTS[name]
    found = faults(chat_folder, spoiled(*changes))
    assert any(sentence in finding.text for finding in found), found


def test_an_answer_that_melts_into_its_header_is_found_with_the_tokenizer_that_does_so(
    chat_folder: Path, newline_tokenizer: Any
) -> None:
    template = spoiled(("text(message.content) | trim", "'\\n' ~ text(message.content)"))
    assert faults(chat_folder, template) == []
    assert "prompt is no prefix of prompt and answer in tokens" in faults(chat_folder, template, newline_tokenizer)[0].text
    assert faults(chat_folder, read_template("hybrid"), newline_tokenizer) == []


def test_markers_are_not_asked_for_where_nothing_is_masked(chat_folder: Path) -> None:
    template = spoiled(("{%- generation -%}", ""), ("{%- endgeneration -%}", ""))
    assert faults(chat_folder, template, loss_on="all") == []
    assert faults(chat_folder, template, sources=[{"name": "a", "path": "x", "kind": "prompts"}]) == []
    assert faults(chat_folder, template, sources=[{"name": "a", "path": "x", "kind": "preference"}]) != []


@pytest.mark.parametrize("template", ["hybrid", "chatml"])
@pytest.mark.parametrize(
    "data",
    [{}, {"loss_on": "all"}, {"sources": [{"name": "a", "path": "x", "kind": "prompts"}]}],
    ids=["masked", "all", "prompts"],
)
def test_a_tokenizer_that_stops_at_another_token_than_the_template_is_refused(
    chat_folder: Path, template: str, data: dict[str, Any]
) -> None:
    """Masked or not: what is trained on, or sampled, would never end."""
    tokenizer = load_tokenizer(str(chat_folder), template)
    tokenizer.eos_token = "<|end_of_text|>"
    found = faults(chat_folder, read_template(template), tokenizer, **data)
    assert [finding.text.partition("; ")[0] for finding in found] == [
        "data.template=hybrid: a chat ends with 'The ebb.<|im_end|>' and not with the tokenizer's stop token <|end_of_text|>, "
        "so that the model would not stop"
    ]


def test_think_as_a_special_token_or_as_none_is_refused(chat_folder: Path, base_model: Path) -> None:
    data = config(chat_folder, {"path": "x"}).data
    special = load_tokenizer(str(chat_folder), "hybrid")
    special.add_special_tokens({"additional_special_tokens": ["<think>"]})
    text = "\n".join(finding.text for finding in template_findings(special, data))
    assert "<think> is a special token, which decoding leaves out, so that no reward or parser would see it" in text
    plain = load_tokenizer(str(base_model), "hybrid")
    text = "\n".join(finding.text for finding in template_findings(plain, data))
    assert "<think> is no token of the tokenizer; make the model's folder with `python -m post_training chat-model`" in text


def test_a_faulty_template_refuses_preparation(tmp_path: Path, chat_folder: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(spoiled(*TEMPLATE_FAULTS["stop token outside"][0]))
    file = write_rows(tmp_path / "a.jsonl", sums(3))
    with pytest.raises(Refused, match=r"mine.jinja: the stop token <\|im_end\|> stands outside"):
        prepare(config(chat_folder, {"path": str(file)}, template=str(template)), tmp_path / "out")
