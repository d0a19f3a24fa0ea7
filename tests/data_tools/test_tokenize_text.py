"""`tokenize`: shards that give every text back, and a manifest that agrees with the files."""

import gzip
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from document_files import Tool, contents, python, read_documents, write_documents
from tokenized import TEXTS, changed_tokenizer, documents_in, texts_in
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from data_tools.datatrove_steps import quiet
from smol_data.manifest import read_manifest, sha256_of_file


def test_every_document_of_the_corpus_comes_back_from_its_ids(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    texts = [document["text"] for document in read_documents(corpus / "docs")]
    assert sorted(texts_in(tokens, tokenizer)) == sorted(texts)


def test_the_manifest_agrees_with_the_files(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    manifest = read_manifest(tokens)
    on_disk = {path.name for path in tokens.iterdir()} - {"manifest.json", "report.json"}
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
    assert manifest.eos_ends_documents
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


def test_the_files_are_those_that_datatrove_writes(corpus: Path, tokenizer: Path, tokens: Path, tmp_path: Path) -> None:
    """Its own reader and tokenizer, run on the files of the first shard with the same seed."""
    name = f"sha256:{sha256_of_file(tokenizer / 'tokenizer.json')}"
    files = sorted((corpus / "docs").iterdir())[::2]
    (tmp_path / "paths").write_text("".join(f"{file.name}\n" for file in files))
    reader = JsonlReader(str(corpus / "docs"), paths_file=str(tmp_path / "paths"))
    writer = DocumentTokenizer(str(tmp_path / "theirs"), str(tokenizer / "tokenizer.json"), eos_token="<|end_of_text|>", seed=0)
    with quiet():
        for _ in writer.run(reader.run()) or ():
            pass
    shard = "00000_00000_doc_shuffled.ds"
    for ending in ("", ".index"):
        assert (tmp_path / "theirs" / f"{shard}{ending}").read_bytes() == (tokens / f"{shard}{ending}").read_bytes()
    note = (tmp_path / "theirs" / f"{shard}.metadata").read_text().replace(str(tokenizer / "tokenizer.json"), name)
    assert note == (tokens / f"{shard}.metadata").read_text()


def test_an_eos_inside_a_document_is_noted(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    """An EOS that is a plain token of the vocabulary comes from plain text too."""
    folder = changed_tokenizer(tokenizer, tmp_path / "tokenizer", eos_token="a")
    source = write_documents(tmp_path / "a.jsonl", ["a b a"])
    assert tool("tokenize", source, tmp_path / "out", "--tokenizer", folder).code == 0
    assert not read_manifest(tmp_path / "out").eos_ends_documents


def test_all_kinds_of_files_give_the_same_tokens(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    plain = write_documents(tmp_path / "plain" / "a.jsonl", TEXTS)
    lines = plain.read_bytes().splitlines(keepends=True)
    for name in ("gz", "zst", "parquet", "txt", "arrow"):
        (tmp_path / name).mkdir()
    (tmp_path / "gz" / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    # two frames, as parallel compressors and `cat` write them
    frames = zstandard.compress(b"".join(lines[:2])) + zstandard.compress(b"".join(lines[2:]))
    (tmp_path / "zst" / "a.jsonl.zst").write_bytes(frames)
    table = pyarrow.table({"url": ["http://x"] * len(TEXTS), "text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "arrow" / "saved")
    for index, text in enumerate(TEXTS):
        (tmp_path / "txt" / f"{index}.txt").write_bytes(text.encode())
    for name in ("plain", "gz", "zst", "parquet", "txt", "arrow"):
        outcome = tool("tokenize", tmp_path / name, tmp_path / "out" / name, "--tokenizer", tokenizer)
        assert outcome.code == 0, outcome
    expected = contents(tmp_path / "out" / "plain")
    assert sorted(texts_in(tmp_path / "out" / "plain", tokenizer)) == sorted(TEXTS)
    for name in ("gz", "zst", "parquet", "txt", "arrow"):
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
