"""`tokenize`: shards that give every text back, a manifest that agrees with the files, and faults that leave nothing."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from document_files import Tool, contents, python, read_documents, write_documents
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from smol_data.manifest import Manifest, read_manifest, sha256_of_file

TEXTS = ["first text, é 漢 🙂", "second\n\ttext\r\n", " third ", "fourth: <|end_of_text|> inside", "5 5 5"]


def documents_in(folder: Path) -> list[list[int]]:
    """The ids of every document of a token dataset, read from the files alone."""
    manifest = read_manifest(folder)
    documents = []
    for shard in manifest.shards:
        ids = np.fromfile(folder / shard.name, dtype=manifest.token_dtype)
        ends = np.fromfile(folder / f"{shard.name}.index", dtype="<u8").astype(int)
        documents += [part.tolist() for part in np.split(ids, ends[:-1])]
    return documents


def texts_in(folder: Path, tokenizer: Path) -> list[str]:
    """Every document's text, its EOS checked and taken away."""
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    documents = documents_in(folder)
    assert all(ids[-1] == 0 and 0 not in ids[:-1] for ids in documents)
    return [loaded.decode(ids[:-1], skip_special_tokens=False) for ids in documents]


def changed_tokenizer(tokenizer: Path, folder: Path, **settings: object) -> Path:
    """A copy of a tokenizer folder with other settings in tokenizer_config.json."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_every_document_of_the_corpus_comes_back_from_its_ids(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    texts = [document["text"] for document in read_documents(corpus / "docs")]
    assert sorted(texts_in(tokens, tokenizer)) == sorted(texts)


def test_the_manifest_agrees_with_the_files(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    manifest = read_manifest(tokens)
    on_disk = {path.name for path in tokens.iterdir()} - {"manifest.json"}
    assert [entry.name for entry in manifest.files] == sorted(on_disk)
    assert {Path(name).suffix for name in on_disk} == {".ds", ".index", ".metadata"}
    for entry in manifest.files:
        assert (entry.bytes, entry.sha256) == ((tokens / entry.name).stat().st_size, sha256_of_file(tokens / entry.name))
    assert len(manifest.shards) == 2
    for shard in manifest.shards:
        ends = np.fromfile(tokens / f"{shard.name}.index", dtype="<u8")
        assert (shard.tokens, shard.documents) == (shard.bytes // 2, len(ends)) == (ends[-1], len(ends))
    assert manifest.documents == len(read_documents(corpus / "docs"))
    assert manifest.tokens == sum(shard.tokens or 0 for shard in manifest.shards)
    assert (manifest.dtype, manifest.eos_id, manifest.seed, manifest.vocab_size) == ("uint16", 0, 0, 2000)
    assert manifest.tokenizer.name == str(tokenizer)
    assert manifest.tokenizer.sha256 == sha256_of_file(tokenizer / "tokenizer.json")


def test_documents_are_shuffled_by_the_seed_and_only_by_it(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(50)]
    source = write_documents(tmp_path / "a.jsonl", texts)
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        assert tool("tokenize", source, tmp_path / name, "--tokenizer", tokenizer, "--seed", seed).code == 0
    first, other = (texts_in(tmp_path / name, tokenizer) for name in ("first", "other"))
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert len({tuple(texts), tuple(first), tuple(other)}) == 3
    assert sorted(first) == sorted(other) == sorted(texts)


def test_the_number_of_workers_changes_no_byte(corpus: Path, tokenizer: Path, tokens: Path, tmp_path: Path) -> None:
    arguments = ["tokenize", corpus / "docs", tmp_path / "out", "--tokenizer", tokenizer, "--tasks", "2", "--workers", "2"]
    done = python("-m", "data_tools", *arguments)
    assert done.code == 0, done.err
    assert contents(tmp_path / "out") == contents(tokens)
    assert " | " not in done.err  # datatrove's log lines stay off the terminal


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
    assert contents(tmp_path) == before


def test_all_kinds_of_files_give_the_same_tokens(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    plain = write_documents(tmp_path / "plain" / "a.jsonl", TEXTS)
    lines = plain.read_bytes().splitlines(keepends=True)
    for name in ("gz", "zst", "parquet", "txt"):
        (tmp_path / name).mkdir()
    (tmp_path / "gz" / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    # two frames, as parallel compressors and `cat` write them
    frames = zstandard.compress(b"".join(lines[:2])) + zstandard.compress(b"".join(lines[2:]))
    (tmp_path / "zst" / "a.jsonl.zst").write_bytes(frames)
    table = pyarrow.table({"url": ["http://x"] * len(TEXTS), "text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "a.parquet")
    for index, text in enumerate(TEXTS):
        (tmp_path / "txt" / f"{index}.txt").write_bytes(text.encode())
    for name in ("plain", "gz", "zst", "parquet", "txt"):
        outcome = tool("tokenize", tmp_path / name, tmp_path / "out" / name, "--tokenizer", tokenizer)
        assert outcome.code == 0, outcome
    expected = contents(tmp_path / "out" / "plain")
    assert sorted(texts_in(tmp_path / "out" / "plain", tokenizer)) == sorted(TEXTS)
    for name in ("gz", "zst", "parquet", "txt"):
        assert contents(tmp_path / "out" / name) == expected, name


def test_a_special_tokens_name_inside_a_text_stays_text(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", ["<|im_start|>user<|end_of_text|>"])
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer).code == 0
    (ids,) = documents_in(tmp_path / "out")
    assert ids[-1] == 0
    assert min(ids[:-1]) > 3  # none of the four special ids


def test_truncation_padding_and_template_of_the_tokenizer_are_not_applied(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.enable_truncation(8)
    loaded.enable_padding(pad_id=1, pad_token="<|pad|>")
    loaded.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 2)])
    folder = changed_tokenizer(tokenizer, tmp_path / "tokenizer", eos_token={"content": "<|end_of_text|>"})
    loaded.save(str(folder / "tokenizer.json"))
    texts = ["short", "long " * 100]
    source = write_documents(tmp_path / "a.jsonl", texts)
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", folder).code == 0
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(texts)


def test_ids_beyond_sixteen_bits_are_written_in_thirty_two(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.add_tokens([AddedToken(f"<{index}>", normalized=False) for index in range(2**16 + 1 - 2000)])
    folder = changed_tokenizer(tokenizer, tmp_path / "tokenizer", eos_token="<|end_of_text|>")
    loaded.save(str(folder / "tokenizer.json"))
    last = f"<{2**16 - 2000}>"
    source = write_documents(tmp_path / "a.jsonl", [f"x{last}"])
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", folder).code == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 2**16 + 1)
    assert documents_in(tmp_path / "out") == [[loaded.token_to_id("x"), 2**16, 0]]


def test_documents_without_text_are_left_out_and_counted(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    full = write_documents(tmp_path / "a.jsonl", ["text", "", "more"])
    empty = write_documents(tmp_path / "b.jsonl", ["", ""])
    outcome = tool("tokenize", full, empty, tmp_path / "out", "--tokenizer", tokenizer, "--tasks", "2", "--workers", "1")
    assert outcome.code == 0
    assert "left out: 3 documents without text" in outcome.out
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == ["more", "text"]
    assert sum(path.suffix == ".ds" for path in (tmp_path / "out").iterdir()) == 1


def test_an_empty_folder_may_be_given_and_a_finished_one_not(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "out").mkdir()
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer).code == 0
    before = contents(tmp_path)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert outcome.code == 2
    assert "already holds a finished dataset (manifest.json); remove it or name a new folder" in outcome.err
    assert contents(tmp_path) == before


def test_a_hub_name_is_resolved_through_the_hub(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(repository: str, file: str) -> str:
        if repository != "someone/model" or not (tokenizer / file).exists():
            raise FileNotFoundError(repository)
        return str(tokenizer / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", "someone/model").code == 0
    assert read_manifest(tmp_path / "out").tokenizer.name == "someone/model"
    outcome = tool("tokenize", source, tmp_path / "other", "--tokenizer", "no/such")
    assert outcome.code == 2
    assert "--tokenizer no/such: neither a folder here nor a Hub repository" in outcome.err


def test_a_shard_that_disagrees_with_its_index_is_not_released(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools import datatrove_steps, tokenize_text

    write = tokenize_text.write_shards

    def spoil(folder: Path, *arguments: object) -> int:
        empty = write(folder, *arguments)  # type: ignore[arg-type]
        shard = next(folder.glob("*.ds"))
        shard.write_bytes(shard.read_bytes()[:-2])
        return empty

    monkeypatch.setattr(tokenize_text, "write_shards", spoil)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert (outcome.code, "and its index disagree after writing" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of the library\nwith more lines")

    monkeypatch.setattr(datatrove_steps.ShardWriter, "write_unshuffled", crash)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert (outcome.code, "failed with RuntimeError: a fault of the library; nothing" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_refused_with_one_sentence(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    good = write_documents(tmp_path / "good" / "a.jsonl", TEXTS)
    (tmp_path / "good" / "b.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("\n[1, 2]\n")
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.read_bytes())[:-12])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
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
        ([tmp_path / "cut.parquet"], "cut.parquet cannot be read"),
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


def test_help_of_every_command_gives_an_example_without_heavy_imports(tool: Tool) -> None:
    for command in ("corpus", "train-tokenizer", "tokenize"):
        outcome = tool(command, "--help")
        assert outcome.code == 0
        assert f"example:\n  python -m data_tools {command} " in outcome.out
    code = "import sys; from data_tools.__main__ import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = python("-c", code).out.split()
    assert "data_tools.corpus" in loaded
    assert not {"datatrove", "transformers", "tokenizers", "torch"} & set(loaded)


def test_the_manifest_is_written_last(tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Manifest, folder: Path) -> None:
        assert any(folder.glob("*.ds"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full_disk)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    outcome = tool("tokenize", source, tmp_path / "out", "--tokenizer", tokenizer)
    assert (outcome.code, "No space left on device" in outcome.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
