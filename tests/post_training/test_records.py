"""Files and their rows: what is read, in which forms messages may come, and which rows cannot be used."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from chats import ASK, CALL, SYSTEM, TELL, THINK, TOOL, sums, write_rows
from hub_double import hub_double

from post_training.config import Source
from post_training.normalise import BrokenRow, Normaliser, Sample
from post_training.sources import find, records
from smol_config import UserError


def source(path: Path | str = "x", **more: Any) -> Source:
    return Source(**{"name": "tides", "path": str(path), **more})


def read(path: Path, **more: Any) -> list[dict[str, Any]]:
    found = find(source(path, **more))
    rows = [record for file in found.files for _, record in records(found.source, file)]
    assert len(rows) == sum(found.rows)
    return rows


def sample(record: dict[str, Any], **more: Any) -> Sample:
    return Normaliser(source(**more))(record)


# --- files -------------------------------------------------------------------------------------------------------------------


def test_the_same_rows_from_json_lines_gzip_zstd_and_parquet(tmp_path: Path) -> None:
    rows = sums(7)
    text = "".join(json.dumps(row) + "\n\n" for row in rows).encode()  # blank lines are passed over
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(text))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert all(read(file) == rows for file in sorted(tmp_path.iterdir()))


def test_a_folder_is_read_file_by_file_and_patterns_choose(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", [{"text": name}])
    assert [row["text"] for row in read(tmp_path)] == ["a", "b", "c"]
    assert [row["text"] for row in read(tmp_path, files=["data/[ac]*"])] == ["a", "c"]


def test_files_that_do_not_match_and_other_splits_are_told_by_the_setting(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}-0.jsonl", [{"text": name}])
    with pytest.raises(UserError, match=r"dataset tides: input .* holds other splits .*, or say in files: 'train\*'"):
        find(source(tmp_path))
    with pytest.raises(UserError, match=r"dataset tides: files: valid\*: no data file of .* matches"):
        find(source(tmp_path, files=["valid*"]))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', r"dataset tides: .*a.jsonl cannot be read after row 0 \(.*\); fetch or write"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"after row 1? ?.*list where an object should stand"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], r"dataset tides: .*a.jsonl.gz cannot be read"),
        ("a.parquet", b"PAR1 and no more", r"dataset tides: .*a.parquet cannot be read"),
        ("a.jsonl", b"\n\n", r"dataset tides: .*a.jsonl holds no rows"),
        ("a.txt", b"text", r"dataset tides: .*a.txt is text; give JSON Lines or Parquet"),
        ("a.jsonl", b"", r"dataset tides: input file .*a.jsonl is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_dataset(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / name)


def test_a_dataset_of_the_hub_is_fetched_and_only_what_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        write_rows(tmp_path / "hub/org/tides/SFT" / f"{name}.jsonl", [{"text": name}])
    with hub_double(tmp_path / "hub", monkeypatch) as hub:
        assert [row["text"] for row in read(Path("org/tides"), files=["SFT/b*"])] == ["b"]
        assert hub.downloads() == ["b.jsonl"]
        with pytest.raises(UserError, match=r"dataset tides: path=org/none .* cannot be fetched from the Hub at main"):
            find(source("org/none"))


@pytest.mark.parametrize("path", ["org/tides", "./tides", "tides"])
def test_a_dataset_that_cannot_be_reached_is_named(path: str) -> None:
    with pytest.raises(UserError, match=rf"dataset tides: path={path} is (no file or folder here and cannot|not there)"):
        find(source(path))


# --- columns -----------------------------------------------------------------------------------------------------------------


def test_a_column_that_is_not_there_is_named_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"dataset tides has no column 'messages'; did you mean 'message'\?; say in columns:"):
        sample({"message": [ASK, TELL]})
    with pytest.raises(UserError, match=r"has no column 'chat'"):
        sample({"messages": [ASK, TELL]}, columns={"messages": "chat"})
    with pytest.raises(UserError, match=r"has no column 'rejected'"):
        sample({"prompt": "a", "chosen": "b"}, kind="preference")
    with pytest.raises(UserError, match=r"has no column 'answer'"):
        sample({"prompt": "a"}, kind="prompts", keep=["answer"])


# --- messages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [SYSTEM, ASK, THINK]},
        {"messages": [SYSTEM, ASK, {"role": "assistant", "content": "<think>\nIt is high water now.\n</think>\n\nThe ebb."}]},
        {"messages": [SYSTEM, ASK, {"role": "assistant", "content": "The ebb.", "reasoning": "It is high water now.\n"}]},
        {"messages": [SYSTEM, ASK, {**THINK, "tool_calls": None, "name": None}]},
        {"messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": ASK["content"]}]}, THINK]},
        {"prompt": [SYSTEM, ASK], "completion": [THINK]},
        {
            "messages": [
                {"from": "system", "value": SYSTEM["content"]},
                {"from": "human", "value": ASK["content"]},
                {"from": "gpt", "value": "<think>It is high water now.</think>The ebb."},
            ]
        },
    ],
)
def test_every_form_of_messages_becomes_one(record: dict[str, Any]) -> None:
    assert sample(record).messages == [SYSTEM, ASK, THINK]


def test_calls_lose_the_nulls_that_parquet_gives_them() -> None:
    call = {"function": {"name": "tide", "arguments": {"place": "Brügge", "hours": [1, 2], "depth": None}}, "id": None}
    turns = [ASK, {**CALL, "tool_calls": [call]}]
    assert sample({"messages": turns}).messages[1]["tool_calls"] == [
        {"function": {"name": "tide", "arguments": {"place": "Brügge", "hours": [1, 2]}}}
    ]


@pytest.mark.parametrize(
    ("messages", "kind", "text"),
    [
        ([ASK], "no assistant turn", "no assistant turn to learn from"),
        ([], "no turns", "no turn of a user"),
        ([SYSTEM], "no turns", "no turn of a user"),
        ([ASK, ASK, TELL], "roles out of order", "turn 1 is user after user; expected assistant"),
        ([TELL, ASK], "roles out of order", "turn 0 is assistant after start; expected system or user"),
        ([ASK, SYSTEM, TELL], "roles out of order", "turn 1 is system after user"),
        ([ASK, {"role": "judge", "content": "x"}], "malformed message", "role 'judge' is none of"),
        ([ASK, "The ebb."], "malformed message", "a message is str"),
        ([ASK, {"role": "assistant", "content": 7}], "malformed message", "content of a message is int"),
        ([{"role": "user", "content": [{"type": "image"}]}, TELL], "malformed message", "a part of a message is not text"),
        ([{"role": "user", "content": " "}, TELL], "empty turn", "a user's turn is empty"),
        (7, "malformed message", "messages holds int, not messages"),
    ],
)
def test_a_chat_that_cannot_be_used_says_why(messages: Any, kind: str, text: str) -> None:
    with pytest.raises(BrokenRow, match=text) as fault:
        sample({"messages": messages})
    assert fault.value.kind == kind


def test_a_text_without_text_cannot_be_used() -> None:
    with pytest.raises(BrokenRow, match="text holds no text"):
        sample({"text": " \n"}, kind="text")


# --- modes and template variables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "mode"),
    [
        ({"messages": [ASK, THINK]}, "think"),
        ({"messages": [ASK, TELL]}, "no_think"),
        ({"messages": [ASK, TELL], "chat_template_kwargs": {"enable_thinking": True}}, "think"),
        ({"messages": [ASK, TELL], "chat_template_kwargs": '{"enable_thinking": false}'}, "no_think"),
        ({"messages": [{"role": "system", "content": "/think"}, ASK, TELL]}, "think"),
        (
            {
                "messages": [{"role": "system", "content": "x /no_think"}, ASK, TELL],
                "chat_template_kwargs": {"enable_thinking": True},
            },
            "no_think",
        ),
    ],
)
def test_the_mode_is_what_the_row_says(record: dict[str, Any], mode: str) -> None:
    found = sample(record)
    assert found.mode == mode and found.options["enable_thinking"] is (mode == "think")


def test_the_sources_mode_wins_but_not_against_reasoning_or_a_flag() -> None:
    assert sample({"messages": [ASK, TELL]}, mode="think").mode == "think"
    with pytest.raises(BrokenRow, match="holds reasoning and the mode is no_think"):
        sample({"messages": [ASK, THINK]}, mode="no_think")
    with pytest.raises(BrokenRow, match="says /no_think and mode is think"):
        sample({"messages": [{"role": "system", "content": "/no_think"}, ASK, TELL]}, mode="think")


def test_template_variables_of_a_row_are_taken_but_for_nones() -> None:
    given = {"custom_instructions": None, "xml_tools": [TOOL], "python_tools": [], "enable_thinking": False}
    found = sample({"messages": [ASK, TELL], "chat_template_kwargs": given})
    assert found.options == {"xml_tools": [TOOL], "enable_thinking": False}
    with pytest.raises(BrokenRow, match=r"'enable_thinkin'; did you mean 'enable_thinking'"):
        sample({"messages": [ASK, TELL], "chat_template_kwargs": {"enable_thinkin": False}})


def test_a_tools_column_is_taken_as_json_too() -> None:
    with pytest.raises(BrokenRow, match="is not valid JSON"):
        sample({"messages": [ASK, CALL], "tools": "[{"})
    assert sample({"messages": [ASK, CALL], "tools": json.dumps([TOOL])}).options["xml_tools"] == [TOOL]


# --- pairs and prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [SYSTEM, ASK], "chosen": [TELL], "rejected": [{"role": "assistant", "content": "The flood."}]},
        {"prompt": [SYSTEM, ASK], "chosen": "The ebb.", "rejected": "The flood."},
        {"chosen": [SYSTEM, ASK, TELL], "rejected": [SYSTEM, ASK, {"role": "assistant", "content": "The flood."}]},
        {
            "prompt": ASK["content"],
            "chosen": [SYSTEM, ASK, TELL],
            "rejected": [SYSTEM, ASK, {"role": "assistant", "content": "The flood."}],
        },
    ],
)
def test_pairs_come_with_a_prompt_or_as_whole_conversations(record: dict[str, Any]) -> None:
    pair = sample(record, kind="preference")
    assert pair.messages == [SYSTEM, ASK] and pair.chosen == TELL
    assert pair.rejected == {"role": "assistant", "content": "The flood."}


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": [THINK], "rejected": [dict(THINK)]}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": [ASK]}, "rejected is not one assistant turn"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "chosen is not one assistant turn"),
        ({"prompt": [ASK, TELL], "chosen": "b", "rejected": "c"}, "turn 2 is assistant after assistant"),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(record: dict[str, Any], text: str) -> None:
    with pytest.raises(BrokenRow, match=text):
        sample(record, kind="preference")


def test_a_prompt_carries_its_mode_and_instructions_in_the_system_message() -> None:
    record = {"prompt": "Which?", "answer": 4.1, "chat_template_kwargs": {"custom_instructions": "Use metres."}}
    found = sample(record, kind="prompts", mode="no_think", keep=["answer"])
    assert found.messages[0] == {"role": "system", "content": "Use metres.\n/no_think"} and found.options == {}
    assert found.kept == {"answer": "4.1"}
    told = sample({"prompt": [{"role": "system", "content": "Be brief. /think"}, ASK]}, kind="prompts", mode="no_think")
    assert told.messages == [{"role": "system", "content": "Be brief.\n/no_think"}, ASK]
    assert sample({"prompt": "Which?"}, kind="prompts").messages[0]["content"] == "/think"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": [ASK, TELL], "answer": "4"}, "the prompt ends with an assistant turn"),
        ({"prompt": "a", "answer": "4", "chat_template_kwargs": {"xml_tools": [TOOL]}}, "cannot have tools"),
        ({"prompt": "", "answer": "4"}, "no turn of a user"),
        ({"prompt": "a", "answer": None}, "answer, which keep names, has no value"),
        ({"prompt": "a"}, "answer, which keep names, has no value"),
    ],
)
def test_a_prompt_that_cannot_be_used_says_why(record: dict[str, Any], text: str) -> None:
    normalise = Normaliser(source(kind="prompts", keep=["answer"]))
    assert normalise({"prompt": "a", "answer": 0}).kept == {"answer": "0"}  # the first row has every column
    with pytest.raises(BrokenRow, match=text):
        normalise(record)
