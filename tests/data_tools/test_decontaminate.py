"""`decontaminate`: passages of held-out text are found wherever they stand, near misses are not, the rest is copied whole."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from document_files import Tool, contents, python, read_documents, write_documents

from data_tools import decontaminate
from data_tools.ngram_index import normalised, words_of


def write_items(path: Path, items: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf8")
    return path


def hits_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "hits.jsonl").read_text("utf8").splitlines()]


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text("utf8"))


def kept_texts(out: Path) -> list[str]:
    return [document["text"] for document in read_documents(out / "kept")]


QUESTION = "A train leaves the station at seven in the morning and travels north at sixty miles an hour; when does it arrive?"


def test_held_out_passages_are_found_with_their_place_and_the_rest_is_kept(tool: Tool, corpus: Path, tmp_path: Path) -> None:
    training = read_documents(corpus / "docs")
    held_out = [document["text"] for document in read_documents(corpus / "held_out" / "docs")]
    leaked = [" ".join(text.split()[100:130]) for text in held_out if len(text.split()) > 130][:5]
    assert len(leaked) == 5
    source = tmp_path / "in"
    clean = write_documents(source / "a.jsonl", [document["text"][:2000] for document in training[:200]])
    documents = [f"Once upon a time. {text.upper()} -- and so on" for text in leaked] + ["nothing here"]
    write_documents(source / "b.jsonl", documents)
    evals = write_items(tmp_path / "evals" / "topics.jsonl", [{"passage": text, "label": 3} for text in held_out])
    outcome = tool("decontaminate", source, tmp_path / "out", "--against", evals, "--workers", "1")
    assert outcome.code == 0, outcome
    hits = [hit for hit in hits_of(tmp_path / "out") if hit["file"].endswith("b.jsonl")]
    assert sorted({hit["record"] for hit in hits}) == [1, 2, 3, 4, 5]
    for hit in hits:
        assert (hit["eval_set"], hit["key"], hit["words"]) == (str(evals), "passage", 13)
        item = words_of(normalised(held_out[hit["item"] - 1]))
        assert hit["ngram"].encode() in b" ".join(item)
        assert f"[{hit['ngram']}]" in hit["context"]
    assert "upon a time [" in hits[0]["context"]
    report = report_of(tmp_path / "out")
    dropped = {(hit["file"], hit["record"]) for hit in hits_of(tmp_path / "out")}
    assert (report["documents"], report["dropped"], report["empty"]) == (206, len(dropped), 0)
    assert report["eval_sets"][0]["documents_hit"] == len(dropped) >= 5
    originals = {path: read_documents_of(path) for path in (clean, source / "b.jsonl")}
    expected = [
        document["text"]
        for path, documents_of in originals.items()
        for number, document in enumerate(documents_of, start=1)
        if (str(path), number) not in dropped
    ]
    assert kept_texts(tmp_path / "out") == expected
    assert f"dropped {len(dropped)} of 206 documents" in outcome.out


def read_documents_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf8").split("\n") if line]


def test_near_misses_are_no_hits_and_disguises_are(tool: Tool, tmp_path: Path) -> None:
    words = QUESTION.split()
    changed = [[*words[:middle], "other", *words[middle + 1 :]] for middle in (10, 12)]
    misses = [" ".join(part) for part in changed] + [" ".join(words[:12]), " ".join(words[::-1])]
    disguised = [QUESTION.upper(), "... ".join(words), QUESTION.replace(" ", "\n\t"), f"x{QUESTION[1:]}", " ".join(words[4:17])]
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    source = write_documents(tmp_path / "a.jsonl", [*misses, *disguised])
    assert tool("decontaminate", source, tmp_path / "out", "--against", evals).code == 0
    assert [hit["record"] for hit in hits_of(tmp_path / "out")] == [5, 6, 7, 8, 9]
    assert kept_texts(tmp_path / "out") == misses
    assert tool("decontaminate", source, tmp_path / "short", "--against", evals, "--ngram", "12").code == 0
    assert [hit["record"] for hit in hits_of(tmp_path / "short")] == [
        2,
        3,
        5,
        6,
        7,
        8,
        9,
    ]  # the second change leaves twelve words


def test_words_do_not_run_from_one_document_into_the_next(tool: Tool, tmp_path: Path) -> None:
    words = QUESTION.split()
    source = write_documents(tmp_path / "a.jsonl", [" ".join(words[:10]), " ".join(words[10:])])
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    assert tool("decontaminate", source, tmp_path / "out", "--against", evals).code == 0
    assert len(kept_texts(tmp_path / "out")) == 2


def test_short_texts_are_matched_whole_and_very_short_ones_not(tool: Tool, tmp_path: Path) -> None:
    nine = "the capital of the old kingdom was Old Dongola"
    items = [{"question": nine, "choices": ["Paris", {"label": nine.replace("old", "new")}]}, {"question": "What is 2+2?"}]
    evals = write_items(tmp_path / "evals.jsonl", items)
    documents = [f"They say {nine}.", "the capital of the old kingdom", "Paris", "What is 2+2? 4"]
    source = write_documents(tmp_path / "a.jsonl", documents)
    outcome = tool("decontaminate", source, tmp_path / "out", "--against", evals)
    assert outcome.code == 0
    (hit,) = hits_of(tmp_path / "out")
    assert (hit["record"], hit["item"], hit["key"], hit["words"]) == (1, 1, "question", 9)
    (part,) = report_of(tmp_path / "out")["eval_sets"]
    expected = {"eval_set": str(evals), "items": 2, "items_too_short": 1, "items_hit": 1, "documents_hit": 1}
    assert part == expected
    outcome = tool("decontaminate", source, tmp_path / "all", "--against", evals, "--least-words", "4")
    assert [(hit["record"], hit["item"]) for hit in hits_of(tmp_path / "all")] == [(1, 1), (4, 2)]


def test_only_the_named_keys_of_the_items_are_searched(tool: Tool, tmp_path: Path) -> None:
    other = "an answer of so many words that it could be found by them, were it asked for"
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION, "answer": [other], "id": 7}])
    source = write_documents(tmp_path / "a.jsonl", [QUESTION, other])
    for keys, records in (((), [1, 2]), (("answer",), [2]), (("answer", "question"), [1, 2]), (("question",), [1])):
        arguments = [argument for key in keys for argument in ("--eval-key", key)]
        out = tmp_path / ("_".join(keys) or "all")
        assert tool("decontaminate", source, out, "--against", evals, *arguments).code == 0
        assert [hit["record"] for hit in hits_of(out)] == records


def test_counts_are_by_evaluation_set(tool: Tool, tmp_path: Path) -> None:
    other = "a second question that is long enough to be searched for by its words, is it not"
    first = write_items(tmp_path / "first.jsonl", [{"q": QUESTION}, {"q": QUESTION, "again": QUESTION}])
    second = tmp_path / "second.jsonl.gz"
    second.write_bytes(gzip.compress(json.dumps({"q": [other]}).encode() + b"\n\n"))
    source = write_documents(tmp_path / "a.jsonl", [QUESTION, f"{other} {QUESTION}", other, "none"])
    outcome = tool("decontaminate", source, tmp_path / "out", "--against", first, second)
    assert outcome.code == 0, outcome
    sets = report_of(tmp_path / "out")["eval_sets"]
    assert [(part["items"], part["items_hit"], part["documents_hit"]) for part in sets] == [(2, 2, 2), (1, 1, 2)]
    assert report_of(tmp_path / "out")["dropped"] == 3
    assert kept_texts(tmp_path / "out") == ["none"]
    assert [line.split()[-4:] for line in outcome.out.splitlines()[1:3]] == [["2", "0", "2", "2"], ["1", "0", "1", "2"]]


def test_records_are_copied_with_all_their_fields_whatever_they_came_in(tool: Tool, tmp_path: Path) -> None:
    records = [
        {"id": 1, "body": "kept é 漢 <|end|>", "meta": {"score": 0.5, "tags": ["a", None]}},
        {"id": 2, "body": QUESTION, "meta": {"score": 1.0, "tags": []}},
        {"id": 3, "body": "", "meta": {"score": 2.0, "tags": []}},
    ]
    (tmp_path / "jsonl").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "jsonl" / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "parquet").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "parquet" / "x.parquet")
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    for kind in ("jsonl", "parquet"):
        outcome = tool("decontaminate", tmp_path / kind, tmp_path / "out" / kind, "--against", evals, "--text-key", "body")
        assert outcome.code == 0, outcome
        assert [path.name for path in (tmp_path / "out" / kind / "kept").iterdir()] == ["00000-x.jsonl"]
        assert read_documents(tmp_path / "out" / kind / "kept") == records[:1]
        assert "dropped 1 of 2 documents; 1 more were empty" in outcome.out


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_are_searched_turn_by_turn_and_kept_as_they_are(tool: Tool, tmp_path: Path, kind: str) -> None:
    ask, answer = {"role": "user", "content": f"Tell me: {QUESTION}"}, {"role": "assistant", "content": "At noon."}
    clean = {"messages": [{"role": "user", "content": "Why?"}, answer], "source": "a"}
    records = [{"messages": [ask, answer], "source": "a"}, clean]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "chats.parquet")
    else:
        write_items(tmp_path / "chats.jsonl", records)
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    chats, out = tmp_path / f"chats.{kind}", tmp_path / "out"
    outcome = tool("decontaminate", chats, out, "--against", evals, "--text-key", "messages", "--workers", "1")
    assert outcome.code == 0, outcome
    assert [hit["record"] for hit in hits_of(out)] == [1] and read_documents(out / "kept") == [clean]


def test_a_report_alone_copies_nothing(tool: Tool, tmp_path: Path) -> None:
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    source = write_documents(tmp_path / "a.jsonl", [QUESTION, "none"])
    outcome = tool("decontaminate", source, tmp_path / "out", "--against", evals, "--report-only")
    assert outcome.code == 0
    assert "found 1 of 2 documents" in outcome.out
    assert sorted(contents(tmp_path / "out")) == ["hits.jsonl", "report.json"]


def test_a_file_of_which_nothing_is_kept_gives_none(tool: Tool, tmp_path: Path) -> None:
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    write_documents(tmp_path / "in" / "a.jsonl", [QUESTION])
    write_documents(tmp_path / "in" / "b.jsonl", ["none"])
    assert tool("decontaminate", tmp_path / "in", tmp_path / "out", "--against", evals, "--workers", "1").code == 0
    assert [path.name for path in (tmp_path / "out" / "kept").iterdir()] == ["00001-b.jsonl"]


def test_the_number_of_workers_and_the_batches_change_no_byte(
    tool: Tool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = [document["text"][:500] for document in read_documents(corpus / "held_out" / "docs")]
    evals = write_items(tmp_path / "evals.jsonl", [{"text": text} for text in held_out])
    done = python(
        "-m",
        "data_tools",
        "decontaminate",
        corpus / "docs",
        tmp_path / "two",
        "--against",
        evals,
        "--workers",
        "2",
        "--ngram",
        "6",
    )
    assert done.code == 0, done.err
    monkeypatch.setattr(decontaminate, "_BATCH", 5000)
    arguments = ["--against", evals, "--workers", "1", "--ngram", "6"]
    assert tool("decontaminate", corpus / "docs", tmp_path / "one", *arguments).code == 0
    assert len(hits_of(tmp_path / "one")) > 5
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_bad_input_is_refused_with_one_sentence(tool: Tool, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", ["text"])
    evals = write_items(tmp_path / "evals.jsonl", [{"question": QUESTION}])
    short = write_items(tmp_path / "short.jsonl", [{"question": "too short"}])
    numbers = write_items(tmp_path / "numbers.jsonl", [{"question": 5}])
    (broken := tmp_path / "broken.jsonl").write_text('{"question": \n')
    (cut := tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(evals.read_bytes())[:-9])
    (tmp_path / "evals.parquet").write_bytes(b"PAR1")
    before = contents(tmp_path)
    for arguments, sentence in (
        ((source, "--against", tmp_path / "nowhere.jsonl"), "nowhere.jsonl is not a .jsonl or .jsonl.gz file; give evaluation"),
        ((source, "--against", tmp_path / "evals.parquet"), "evals.parquet is not a .jsonl or .jsonl.gz file"),
        ((source, "--against", evals, evals), "evals.jsonl is given twice; name it once"),
        ((source, "--against", broken), "broken.jsonl cannot be read ("),
        ((source, "--against", cut), "cut.jsonl.gz cannot be read ("),
        ((source, "--against", numbers), "numbers.jsonl holds no text; name another file, or its keys with --eval-key"),
        ((source, "--against", short), "no text of the evaluation sets has --least-words 8 words; give a smaller number"),
        ((source, "--against", evals, "--eval-key", "q"), "evals.jsonl, line 1: no key 'q'; keys there: 'question'; name"),
        ((source, "--against", evals, "--least-words", "14"), "--least-words 14 is more than --ngram 13; give 13 or less"),
        ((source, "--against", evals, "--text-key", "body"), "no key 'body'; keys there: 'text'"),
        ((source,), "the following arguments are required: --against"),
        ((tmp_path / "nowhere", "--against", evals), "nowhere does not exist; give files or folders"),
    ):
        inputs, *rest = arguments
        outcome = tool("decontaminate", inputs, tmp_path / "new", *rest)
        assert (outcome.code, sentence in outcome.err) == (2, True), (arguments, outcome)
    assert tool("decontaminate", source, tmp_path, "--against", evals).code == 2
    assert contents(tmp_path) == before
