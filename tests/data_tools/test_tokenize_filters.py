"""What `tokenize` leaves out: documents that datatrove's filters drop and lines that hold none, all counted in report.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from document_files import Tool, contents, read_documents, write_documents
from tokenized import TEXTS, texts_in

from data_tools.inputs import find_inputs
from data_tools.tokenize_text import TokenizeSettings, tokenize
from data_tools.tokenizer_file import open_tokenizer


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf8"))


def filters_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_dropped_document_is_counted_by_filter_and_reason(
    tool: Tool, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    filters = filters_file(
        tmp_path / "f.yaml", "- RegexFilter: {regex_exp: tuple}\n- GopherQualityFilter: {min_doc_words: 200}\n"
    )
    command = ["tokenize", corpus / "held_out", "--tokenizer", tokenizer, "--filters", filters, "--tasks"]
    assert tool(*command, 2, tmp_path / "two", "--workers", 1).code == 0
    outcome = tool(*command, 1, tmp_path / "one")
    assert outcome.code == 0
    counts = report(tmp_path / "one")["dropped"]
    assert counts == report(tmp_path / "two")["dropped"]
    assert set(counts) >= {"GopherQualityFilter: gopher_short_doc", "RegexFilter"}
    texts = [document["text"] for name in ("code", "docs") for document in read_documents(corpus / "held_out" / name)]
    left = texts_in(tmp_path / "one", tokenizer)
    assert len(left) + sum(counts.values()) == len(texts)
    assert 0 < len(left) < len(texts)
    assert not any("tuple" in text for text in left)
    assert f"{counts['RegexFilter']:,} documents by RegexFilter" in outcome.out


def test_text_that_a_filter_mends_is_tokenised_as_mended(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    filters = filters_file(tmp_path / "f.yaml", "- C4QualityFilter: {min_num_sentences: 1, min_words_per_line: 2}")
    source = write_documents(tmp_path / "a.jsonl", ["This line stays.\nmenu", "javascript"])
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--filters", filters).code == 0
    assert texts_in(tmp_path / "out", tokenizer) == ["This line stays."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- GopherQualityFiltr", "no filter 'GopherQualityFiltr' in datatrove; did you mean 'GopherQualityFilter'"),
        ("- LambdaFilter", "no filter 'LambdaFilter' in datatrove; did you mean"),
        (
            "- C4QualityFilter: {min_sentences: 3}",
            "C4QualityFilter has no argument 'min_sentences'; did you mean 'min_num_sent",
        ),
        ("- RegexFilter: deprecated", "RegexFilter has 'deprecated' where its arguments should stand as `argument: value`"),
        ("- RegexFilter", "RegexFilter with {} fails (TypeError: "),
        ("- SamplerFilter: {rate: many}", "SamplerFilter with {'rate': 'many'} fails (TypeError: "),
        ("- 3", "3 is neither a filter's name nor `name: {argument: value}`; write one of them"),
        ("GopherQualityFilter: {}", "holds no list; write a line a filter, such as - GopherQualityFilter: "),
        ("- [", "is not valid YAML: while parsing"),
        (None, "f.yaml cannot be read (No such file or directory); give the path of a YAML file"),
    ],
)
def test_a_bad_file_of_filters_is_refused(text: str | None, message: str, tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    if text:
        filters_file(tmp_path / "f.yaml", text)
    before = contents(tmp_path)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--filters", tmp_path / "f.yaml")
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert contents(tmp_path) == before


def test_a_filter_whose_package_is_missing_says_what_to_install(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datatrove.utils import _import_utils, word_tokenizers

    word_tokenizers.load_word_tokenizer.cache_clear()
    monkeypatch.setattr(_import_utils, "_is_package_available", lambda name: name != "spacy")
    filters = filters_file(tmp_path / "f.yaml", "- GopherQualityFilter")
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer, "--filters", filters)
    assert outcome.code == 2
    assert "GopherQualityFilter needs a package that is not installed: Please install `spacy` to use" in outcome.err
    assert "pip install spacy" in outcome.err


class ShortTexts(BaseFilter):
    """A step as another command gives it: it looks at a column, and counts under a reason."""

    name = "short"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return doc.metadata["score"] > 1 or (False, "low score")


def test_steps_of_another_command_see_the_columns_they_ask_for(tokenizer: Path, tmp_path: Path) -> None:
    lines = [{"text": text, "score": score} for score, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = find_inputs([tmp_path / "a.jsonl"], "text", columns=("score",))
    tokenize(TokenizeSettings(inputs, tmp_path / "out", open_tokenizer(str(tokenizer)), steps=(ShortTexts(),)))
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS[2:])
    assert report(tmp_path / "out")["dropped"] == {"ShortTexts: low score": 2}


def broken_lines(folder: Path) -> list[Path]:
    """Two files of good documents and four lines that hold none."""
    bad = ['{"text": "cut', "[1, 2]", '{"body": "x"}', '{"text": 3}']
    for index in range(2):
        path = write_documents(folder / f"{index}.jsonl", TEXTS)
        with path.open("a") as file:
            file.write("\n".join(bad[2 * index : 2 * index + 2]) + "\n")
    return sorted(folder.iterdir())


def test_broken_lines_are_counted_and_named_up_to_a_limit(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    files = broken_lines(tmp_path / "in")
    command = ["tokenize", tmp_path / "in", tmp_path / "out", "--tokenizer", tokenizer, "--max-broken-lines"]
    outcome = tool(*command, 4)
    assert outcome.code == 0
    assert f"broken: 4 lines, the first {files[0]}, record 6: not valid JSON" in outcome.out
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS * 2)
    lines = report(tmp_path / "out")["broken_lines"]
    assert [(line["file"], line["line"]) for line in lines] == [(str(file), number) for file in files for number in (6, 7)]
    assert "list where an object" in lines[1]["error"]


def test_one_broken_line_too_many_ends_the_run(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    """One shard past the limit stops at once; where only the sum is, the shards are kept for a higher limit."""
    broken_lines(tmp_path / "in")
    command = ["tokenize", tmp_path / "in", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1, "--max-broken-lines"]
    outcome = tool(*command, 3)
    assert outcome.code == 2
    assert "more lines are broken than --max-broken-lines 3; the last: " in outcome.err
    outcome = tool(*command, 3, "--tasks", 2)
    assert outcome.code == 2
    assert "4 lines are broken, more than --max-broken-lines 3 (the first: " in outcome.err
    assert "2 finished parts are kept in " in outcome.err
    assert tool(*command, 4, "--tasks", 2).code == 0
