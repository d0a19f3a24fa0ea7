"""Which files `tokenize` reads: datasets of the Hub as they are cloned and cached, splits, and files that hold no data."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from document_files import Tool, write_documents
from tokenized import TEXTS, texts_in

from data_tools.inputs import find_inputs
from data_tools.tokenize_text import TokenizeSettings, tokenize
from data_tools.tokenizer_file import open_tokenizer

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def hub_folder(folder: Path) -> Path:
    """A clone of a dataset repository with two subsets, and what lies beside the data."""
    for subset, texts in (("en", TEXTS[:3]), ("fr", TEXTS[3:])):
        for index, text in enumerate(texts):
            path = folder / "data" / subset / f"train-{index:05d}-of-{len(texts):05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.table({"id": [str(index)], "text": [text], "score": [index / 2]}), path)
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\n# A dataset\n")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / "dataset_infos.json").write_text("{}")
    for hidden in (".git/lfs/objects/a.parquet", ".cache/huggingface/download/data/en/train.parquet"):
        (folder / hidden).parent.mkdir(parents=True)
        (folder / hidden).write_text("not data")
    return folder


def test_a_clone_of_a_hub_dataset_is_read_whole_or_by_subset(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "dataset")
    command = ["tokenize", folder, "--tokenizer", tokenizer]
    assert tool(*command, tmp_path / "whole").code == 0
    assert sorted(texts_in(tmp_path / "whole", tokenizer)) == sorted(TEXTS)
    assert tool(*command, tmp_path / "fr", "--files", "data/fr/*").code == 0
    assert sorted(texts_in(tmp_path / "fr", tokenizer)) == sorted(TEXTS[3:])
    outcome = tool(*command, tmp_path / "none", "--files", "data/de/*")
    assert outcome.code == 2
    assert "--files data/de/*: no data file of " in outcome.err
    assert "it holds data/en/train-00000-of-00003.parquet and the like" in outcome.err


def test_compressed_lines_under_the_endings_that_the_hub_uses(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(lines))
    assert tool("tokenize", tmp_path / "c4", tmp_path / "out", "--tokenizer", tokenizer).code == 0
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS)


def test_a_cached_dataset_is_a_folder_of_links_to_files_without_endings(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0f343b0931126a20f133d67c2b018a3b"
    blob.parent.mkdir()
    blob.write_bytes(gzip.compress(write_documents(tmp_path / "a.jsonl", TEXTS).read_bytes()))
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "a.jsonl.gz").symlink_to(blob)
    assert tool("tokenize", snapshot, tmp_path / "out", "--tokenizer", tokenizer).code == 0
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS)


def test_other_splits_are_not_trained_on_unasked(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "dataset")
    write_documents(tmp_path / "jsonl" / "train.jsonl", ["attestation of training"])
    for split in ("validation-00000-of-00001", "test-00000-of-00001"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["secret"]}), folder / "data" / "en" / f"{split}.parquet")
    outcome = tool("tokenize", folder, tmp_path / "out", "--tokenizer", tokenizer)
    assert outcome.code == 2
    assert "holds other splits (data/en/test-00000-of-00001.parquet) beside training data (data/en/train-" in outcome.err
    assert "tokenize --files 'data/en/train*'" in outcome.err
    assert tool("tokenize", folder, tmp_path / "out", "--tokenizer", tokenizer, "--files", "data/*/train*").code == 0
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS)


def test_a_git_lfs_pointer_is_not_taken_for_data(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "dataset")
    (folder / "data" / "en" / "train-00001-of-00003.parquet").write_text(LFS_POINTER)
    outcome = tool("tokenize", folder, tmp_path / "out", "--tokenizer", tokenizer)
    assert outcome.code == 2
    assert "train-00001-of-00003.parquet is a Git LFS pointer, not the data; run `git lfs pull`" in outcome.err


def test_saved_arrow_files_without_the_text_are_refused(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "saved")
    outcome = tool("tokenize", tmp_path / "saved", tmp_path / "out", "--tokenizer", tokenizer)
    assert (outcome.code, "no key 'text'; keys there: 'body'" in outcome.err) == (2, True)
    assert tool("tokenize", tmp_path / "saved", tmp_path / "out", "--tokenizer", tokenizer, "--text-key", "body").code == 0


def test_a_shard_for_every_gibibyte_of_input(tokenizer: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from data_tools import tokenize_text

    folder = hub_folder(tmp_path / "dataset")
    inputs = find_inputs([folder], "text")
    monkeypatch.setattr(tokenize_text, "_BYTES_A_SHARD", inputs.bytes // 3 + 1)
    settings = TokenizeSettings(inputs, tmp_path / "out", open_tokenizer(str(tokenizer)), workers=1)
    manifest = tokenize(settings)
    assert manifest is not None
    assert len(manifest.shards) == 3


def test_several_columns_are_joined_by_a_new_line(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "2 + 2?", "answer": "4"}, {"id": 2, "question": "Why?", "answer": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for ending in ("jsonl", "parquet"):
        command = ["tokenize", tmp_path / f"a.{ending}", tmp_path / ending, "--tokenizer", tokenizer, "--text-key"]
        assert tool(*command, "question+answer").code == 0
        assert sorted(texts_in(tmp_path / ending, tokenizer)) == ["2 + 2?\n4", "Why?"]
        (tmp_path / ending).rename(tmp_path / f"whole-{ending}")
        outcome = tool(*command, "question+solution")
        assert outcome.code == 2 and "no key 'solution'; keys there: 'id', 'question', 'answer'" in outcome.err
