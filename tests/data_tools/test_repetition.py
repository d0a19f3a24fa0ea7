"""The rule against repeated spans of tokens: equal to the plain definition, and what `tokenize --repetition` makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from document_files import Tool, contents, write_documents
from tokenized import texts_in

from data_tools.repetition import repetitive_documents
from smol_data.manifest import read_manifest

CLEAN = "Every document here says something else, and no span of it stands thirty-two times in a row."


def is_repetitive(document: list[int], period: int, count: int) -> bool:
    """The definition, token by token."""
    for span in range(1, period + 1):
        run = 0
        for place in range(span, len(document)):
            run = run + 1 if document[place] == document[place - span] else 0
            if run >= span * (count - 1):
                return True
    return False


def test_agrees_with_the_definition_on_random_documents() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(1500):
        period, count = int(random.integers(1, 6)), int(random.integers(2, 9))
        documents = []
        for _ in range(random.integers(1, 6)):
            span = random.integers(0, 9, random.integers(1, 6)).tolist()
            times = int(random.integers(0, 11))
            noise = [random.integers(0, 3, random.integers(0, 20)).tolist() for _ in range(2)]
            documents.append([*noise[0], *span * times, *noise[1], 9])
        ids = np.array([token for document in documents for token in document], dtype=random.choice(["<u2", "<u4"]))
        found = repetitive_documents(ids, np.cumsum([len(document) for document in documents]), period, count).tolist()
        assert found == [is_repetitive(document, period, count) for document in documents]
        seen.update(found)
    assert seen == {True, False}


@pytest.mark.parametrize("span", [1, 2, 7, 13])
def test_the_rule_is_thirty_two_times_and_up_to_thirteen_tokens(span: int) -> None:
    random = np.random.default_rng(span)
    for times, longest, expected in ((32, 13, True), (31, 13, False), (32, span - 1, False)):
        ids = np.concatenate([random.permutation(5000) + 100, np.tile(np.arange(span), times), random.permutation(5000) + 100])
        assert repetitive_documents(ids.astype(np.uint16), np.array([len(ids)]), longest, 32).tolist() == [expected]


def test_a_run_that_goes_over_a_document_end_is_none() -> None:
    ids = np.full(40, 7, dtype=np.uint16)
    assert repetitive_documents(ids, np.array([20, 40]), 13, 32).tolist() == [False, False]
    assert repetitive_documents(ids, np.array([3, 40]), 13, 32).tolist() == [False, True]


def test_documents_are_counted_flagged_or_dropped(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    texts = [f"{CLEAN} {index}" for index in range(20)]
    texts[3] = "\u4e5c" * 40  # one character, several bytes: a span of several tokens
    texts[11] = "start " + "ab, " * 32 + "end"
    texts[12] = "start " + "ab, " * 20 + "end"
    source = write_documents(tmp_path / "a.jsonl", texts)
    command = ["tokenize", source, "--tokenizer", tokenizer]
    for action in ("keep", "flag", "drop"):
        assert tool(*command, tmp_path / action, "--repetition", action).code == 0
    found = {texts[3], texts[11]}
    assert sorted(texts_in(tmp_path / "drop", tokenizer)) == sorted(set(texts) - found)
    assert sorted(texts_in(tmp_path / "keep", tokenizer)) == sorted(texts)

    (shard,) = read_manifest(tmp_path / "flag").shards
    assert f"{shard.name}.flags" in {entry.name for entry in read_manifest(tmp_path / "flag").files}
    flags = (tmp_path / "flag" / f"{shard.name}.flags").read_bytes()
    assert set(flags) == {0, 1}
    flagged = {text for text, flag in zip(texts_in(tmp_path / "flag", tokenizer), flags, strict=True) if flag}
    assert flagged == found
    kept = {name: data for name, data in contents(tmp_path / "keep").items() if not name.endswith(".json")}
    assert {name: data for name, data in contents(tmp_path / "flag").items() if name in kept} == kept

    reports = {action: json.loads((tmp_path / action / "report.json").read_text()) for action in ("keep", "flag", "drop")}
    tokens = [read_manifest(tmp_path / action).tokens for action in ("keep", "drop")]
    for action, report in reports.items():
        assert report["repetition"] == {
            "action": action, "period": 13, "count": 32, "documents": 2, "tokens": tokens[0] - tokens[1]
        }  # fmt: skip
        assert report["dropped"] == ({"repetition": 2} if action == "drop" else {})


def test_the_rule_can_be_set_and_is_told(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", [CLEAN, "start " + "ab, " * 20 + "end"])
    command = ["tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--repetition", "drop", "--repetition-count"]
    outcome = tool(*command, 20)
    assert outcome.code == 0
    assert "left out: 1 documents by repetition" in outcome.out
    outcome = tool(*command, 1)
    assert (outcome.code, "--repetition-count: 1 is too small; give 2 or more" in outcome.err) == (2, True)
    outcome = tool("tokenize", source, tmp_path / "kept", "--tokenizer", tokenizer, "--repetition-count", 20)
    assert "kept: 1 documents (" in outcome.out
    assert "that repeat a span of 1 to 13 tokens 20 times or more" in outcome.out
