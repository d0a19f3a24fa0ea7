"""`manifest` and `megatron-index` between us and Megatron-Core's own writer and reader of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.tokens import MegatronDocumentTokenizer
from document_files import Tool, contents, read_documents
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from numpy.typing import NDArray
from token_folders import assert_reads_as, overwrite, random_documents, write_dataset

from data_tools.datatrove_steps import quiet
from data_tools.verify import verify_folder
from smol_data.manifest import read_manifest


def build_megatron(prefix: Path, documents: list[NDArray[Any]], dtype: type = np.uint16, sequences: int = 1) -> Path:
    """A dataset by Megatron-Core's own builder; each document of so many sequences."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        lengths = [len(part) for part in np.array_split(document, sequences)]
        builder.add_document(document, lengths)  # type: ignore[arg-type]
    builder.finalize(f"{prefix}.idx")
    return prefix.parent


@pytest.mark.parametrize(("dtype", "named"), [(np.uint16, "uint16"), (np.int32, "uint32")])
def test_what_megatrons_builder_writes_is_adopted_and_read(
    tool: Tool, tokenizer: Path, tmp_path: Path, dtype: type, named: str
) -> None:
    documents = [random_documents(seed, 100) for seed in range(2)]
    for number, part in enumerate(documents):
        folder = build_megatron(tmp_path / "megatron" / f"part_{number}", part, dtype)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert outcome.code == 0, outcome
    manifest = read_manifest(folder)
    assert (manifest.dtype, manifest.documents, manifest.eos_ends_documents) == (named, 200, True)
    assert (verify_folder(folder).faults, verify_folder(folder).warnings) == ([], [])
    assert_reads_as(folder, np.concatenate([*documents[0], *documents[1]]))


def test_what_datatroves_megatron_step_writes_is_adopted(tool: Tool, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    texts = [document["text"][:3000] for document in read_documents(corpus / "docs")][:200]
    step = MegatronDocumentTokenizer(
        str(tmp_path / "out"), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"), eos_token="<|end_of_text|>"
    )
    with quiet():
        step.run((Document(text=text, id="") for text in texts), 0, 1)
    assert tool("manifest", tmp_path / "out", "--tokenizer", tokenizer, "--workers", "1").code == 0
    assert read_manifest(tmp_path / "out").documents == len(texts)


def test_damaged_megatron_arrays_are_named_with_their_bytes(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    documents = random_documents(0, 50)
    length = len(documents[4])
    for name, at, data, sentence in (
        ("lengths", 34 + 4 * 4, b"\xff\0\0\0", f"a.idx bytes 50-53: sequence 4 has 255 tokens, by its offsets {length}"),
        ("documents", 34 + 12 * 50 + 8 * 7, b"\x09", "a.idx bytes 690-697: document 7 begins with sequence 9; one sequence a"),
        ("offsets", 34 + 4 * 50 + 8 * 9, b"\xff" * 7, "a.idx bytes 306-313: document 8 ends at token"),
    ):
        folder = build_megatron(tmp_path / name / "a", documents)
        overwrite(folder / "a.idx", at, data)
        outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
        assert (outcome.code, sentence in outcome.err) == (2, True), outcome
        assert not (folder / "manifest.json").exists()


def test_megatron_folders_that_cannot_be_adopted_are_refused(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    documents = random_documents(0, 20)
    split = build_megatron(tmp_path / "split" / "a", documents, sequences=2)
    wide = build_megatron(tmp_path / "wide" / "a", documents, np.int64)
    (lonely := build_megatron(tmp_path / "lonely" / "a", documents)).joinpath("a.idx").unlink()
    (cut := build_megatron(tmp_path / "cut" / "a", documents)).joinpath("a.idx").write_bytes(b"MMIDIDX\0\0")
    two = build_megatron(build_megatron(tmp_path / "two" / "a", documents) / "b", documents, np.int32)
    before = contents(tmp_path)
    for folder, sentence in (
        (split, "a.idx has 40 sequences in 20 documents, but one sequence a document is needed; run Megatron's preprocessing"),
        (wide, "a.idx: its ids are of type int64 (code 5); only uint16 (8) and int32 (4) are read: write it again"),
        (lonely, "a.bin has no a.idx; copy it too"),
        (cut, "a.idx does not begin like a Megatron index of version 1"),
        (two, "a.bin has ids of 2 bytes, b.bin of 4; put them into folders of their own"),
    ):
        outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
        assert (outcome.code, sentence in outcome.err) == (2, True), outcome
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mmap", [True, False])
def test_megatron_core_reads_our_shards_document_by_document(tool: Tool, tokens: Path, tmp_path: Path, mmap: bool) -> None:
    outcome = tool("megatron-index", tokens, tmp_path / "view")
    assert outcome.code == 0, outcome
    for shard in read_manifest(tokens).shards:
        prefix = tmp_path / "view" / shard.name.removesuffix(".ds")
        assert f"  {prefix}\n" in outcome.out
        assert Path(f"{prefix}.bin").is_symlink()
        ids = np.fromfile(tokens / shard.name, dtype="<u2")
        ends = np.fromfile(tokens / f"{shard.name}.index", dtype="<u8").astype(int)
        theirs = IndexedDataset(str(prefix), mmap=mmap)
        assert len(theirs) == len(ends) == len(theirs.document_indices) - 1
        for ours, other in zip(np.split(ids, ends[:-1]), theirs, strict=True):
            assert np.array_equal(ours, other)


def test_the_view_of_uint32_tokens_is_what_megatrons_builder_writes(tool: Tool, tmp_path: Path) -> None:
    documents = random_documents(0, 300, vocab_size=100_000)
    write_dataset(tmp_path / "ours", [documents], dtype="uint32", vocab_size=100_000)
    assert tool("megatron-index", tmp_path / "ours", tmp_path / "view").code == 0
    build_megatron(tmp_path / "theirs" / "00000", documents, np.int32)
    assert contents(tmp_path / "view") == contents(tmp_path / "theirs")


def test_a_view_is_written_in_blocks(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "ours", [random_documents(0, 100), random_documents(1, 31), []])
    assert tool("megatron-index", tmp_path / "ours", tmp_path / "whole").code == 0
    monkeypatch.setattr("data_tools.megatron_index._BLOCK", 7)
    assert tool("megatron-index", tmp_path / "ours", tmp_path / "blocks").code == 0
    assert contents(tmp_path / "blocks") == contents(tmp_path / "whole")


def test_what_megatron_could_not_read_is_refused(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    megatron = build_megatron(tmp_path / "megatron" / "a", random_documents(0, 30))
    assert tool("manifest", megatron, "--tokenizer", tokenizer, "--workers", "1").code == 0
    long = write_dataset(tmp_path / "long", [random_documents(0, 30)])
    with (long / "00000.ds").open("r+b") as file:
        file.truncate(2**32 + 2)  # sparse: a document of 2**31 tokens and one
    (long / "00000.ds.index").write_bytes((2**31 + 1).to_bytes(8, "little"))
    manifest = read_manifest(long)
    entries = [
        entry.model_copy(update={"bytes": 2**32 + 2, "tokens": 2**31 + 1, "documents": 1} if entry.tokens else {"bytes": 8})
        for entry in manifest.files
    ]
    manifest.model_copy(update={"files": entries, "tokens": 2**31 + 1, "documents": 1}).write(long)
    for folder, sentence in (
        (megatron, "is in Megatron's format already; Megatron reads it as it is"),
        (long, "00000.ds: a document has 2147483649 tokens, more than Megatron's int32 lengths hold"),
        (tmp_path / "nowhere", "manifest.json cannot be read"),
    ):
        outcome = tool("megatron-index", folder, tmp_path / "view")
        assert (outcome.code, sentence in outcome.err) == (2, True), outcome
        assert not (tmp_path / "view").exists()
