"""`tokenize`: faults of inputs, tokenizers and disk are one sentence and leave nothing that could be taken for whole."""

import gzip
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from document_files import Tool, contents, python, write_documents
from tokenized import TEXTS, changed_tokenizer, texts_in

from data_tools.shard_work import ShardWork
from data_tools.shard_writer import ShardWriter
from smol_data.manifest import Manifest


def test_a_fault_in_a_worker_process_is_one_sentence(tokenizer: Path, tmp_path: Path) -> None:
    sources = [write_documents(tmp_path / f"{index}.jsonl", TEXTS) for index in range(3)]
    sources.append(write_documents(tmp_path / "bad.jsonl", ["x"], key="body"))
    before = contents(tmp_path)
    arguments = ["tokenize", *sources, tmp_path / "out", "--tokenizer", tokenizer, "--tasks", "4", "--workers", "2"]
    done = python("-m", "data_tools", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "bad.jsonl, record 1: no key 'text'; keys there: 'body'" in done.err
    assert "Traceback" not in done.err
    kept = tmp_path / ".out.partial"
    assert f"finished parts are kept in {kept}; the same command goes on with them" in done.err
    shutil.rmtree(kept)
    assert contents(tmp_path) == before


def test_bad_inputs_are_refused_with_one_sentence(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    good = write_documents(tmp_path / "good" / "a.jsonl", TEXTS)
    (tmp_path / "good" / "b.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("\n[1, 2]\n")
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.read_bytes())[:-12])
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(good.read_bytes())[:-5])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "nothing.jsonl").touch()
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "body.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "LICENSE.txt").write_text("terms")
    write_documents(tmp_path / "mixed" / "a.jsonl", TEXTS)
    blank = write_documents(tmp_path / "blank.jsonl", [""])
    new = tmp_path / "new"
    before = contents(tmp_path)
    for inputs, sentence in (
        ([tmp_path / "nowhere"], "nowhere does not exist; give files or folders of .jsonl"),
        ([tmp_path / "empty"], "empty holds no file that can be read; known endings: .jsonl"),
        ([good, tmp_path / "good"], "a.jsonl is given twice"),
        ([tmp_path / "mixed"], "the inputs mix jsonl and text files"),
        ([tmp_path / "good"], "b.jsonl, record 2: not valid JSON"),
        ([tmp_path / "list.jsonl"], "list.jsonl, record 2: list where an object with the key 'text' should stand"),
        ([tmp_path / "number.jsonl"], "'text' holds int, not text; name the text's key with --text-key"),
        ([tmp_path / "body.parquet"], "no key 'text'; keys there: 'body'"),
        ([tmp_path / "latin.txt"], "latin.txt cannot be read ('utf-8' codec can't decode"),
        ([tmp_path / "cut.jsonl.gz"], "cut.jsonl.gz cannot be read (Compressed file ended"),
        ([tmp_path / "cut.jsonl.zst"], "cut.jsonl.zst cannot be read (the file ends inside a zstd frame"),
        ([tmp_path / "cut.parquet"], "cut.parquet cannot be read"),
        ([tmp_path / "nothing.jsonl"], "nothing.jsonl is empty; fetch or write it again"),
        ([blank], "the inputs hold no text: all 1 documents are empty"),
        ([good, new, "--tasks", "2"], "--tasks 2: a shard takes whole files and there are 1; give 1 or less"),
        ([good, new, "--workers", "0"], "0 is too small; give 1 or more"),
        ([good, new, "--seed", "x"], "'x' is not a whole number"),
    ):
        outcome = tool("tokenize", *inputs, *([] if new in inputs else [new]), "--tokenizer", tokenizer)
        assert (outcome.code, sentence in outcome.err) == (2, True), (inputs, outcome)
        assert not new.exists()
    assert contents(tmp_path) == before


def test_bad_tokenizers_are_refused_with_one_sentence(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "empty").mkdir()
    no_eos = changed_tokenizer(tokenizer, tmp_path / "no_eos", tokenizer_class="PreTrainedTokenizerFast")
    wrong_eos = changed_tokenizer(tokenizer, tmp_path / "wrong_eos", eos_token="</s>")
    damaged = changed_tokenizer(tokenizer, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{}")
    not_json = changed_tokenizer(tokenizer, tmp_path / "not_json")
    (not_json / "tokenizer_config.json").write_text("{")
    new = tmp_path / "new"
    before = contents(tmp_path)
    for name, sentence in (
        (tmp_path / "empty", "the folder holds no tokenizer.json"),
        (tmp_path / "nowhere", "is not a folder; give a folder with a tokenizer.json, or a Hub name such as org/model"),
        (no_eos, "names no EOS token, so documents could not be told apart"),
        (wrong_eos, "its EOS token '</s>' is not in its vocabulary"),
        (damaged, "its tokenizer.json is damaged"),
        (not_json, "tokenizer_config.json is not valid JSON"),
    ):
        outcome = tool("tokenize", source, new, "--tokenizer", name)
        assert (outcome.code, sentence in outcome.err) == (2, True), (name, outcome)
        assert not new.exists()
    assert tool("tokenize", source, new).code == 2  # --tokenizer is required
    assert contents(tmp_path) == before


def test_an_empty_folder_may_be_given_and_a_finished_one_not(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "out").mkdir()
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer).code == 0
    before = contents(tmp_path)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert outcome.code == 2
    assert "already holds a finished dataset (manifest.json); remove it or name a new folder" in outcome.err
    assert contents(tmp_path) == before


def test_a_shard_that_is_cut_short_is_not_released_but_made_again(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools import finish_tokens

    finish = finish_tokens.finish

    def spoil(work: ShardWork) -> Manifest:
        shard = next(work.working.files.glob("*.ds"))
        shard.write_bytes(shard.read_bytes()[:-2])
        return finish(work)

    monkeypatch.setattr(finish_tokens, "finish", spoil)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    command = ["tokenize", source, tmp_path / "out", "--tokenizer", tokenizer]
    outcome = tool(*command)
    assert (outcome.code, "00000_00000_doc_shuffled.ds is not what was written" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    outcome = tool(*command)
    assert (outcome.code, "part 00000 is made again: 00000_00000_doc_shuffled.ds is not what" in outcome.err) == (0, True)
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS)


def test_a_fault_of_a_library_is_one_sentence(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of the library\nwith more lines")

    monkeypatch.setattr(ShardWriter, "write", crash)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert outcome.code == 2
    assert outcome.err.endswith("error: task 0 failed with RuntimeError: a fault of the library\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_manifest_is_written_last(tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Manifest, folder: Path) -> None:
        assert any(folder.glob("*.ds"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full_disk)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    command = ["tokenize", source, tmp_path / "out", "--tokenizer", tokenizer]
    outcome = tool(*command)
    assert (outcome.code, "No space left on device" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert tool(*command).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "out"}


def test_help_of_every_command_gives_an_example_without_heavy_imports(tool: Tool) -> None:
    for command in ("corpus", "train-tokenizer", "tokenize"):
        outcome = tool(command, "--help")
        assert outcome.code == 0
        assert f"example:\n  python -m data_tools {command} " in outcome.out
    code = "import sys; from data_tools.__main__ import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = python("-c", code).out.split()
    assert "data_tools.corpus" in loaded
    assert not {"datatrove", "transformers", "tokenizers", "torch"} & set(loaded)
