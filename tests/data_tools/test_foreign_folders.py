"""`manifest` adopts what datatrove's own steps wrote, token by token, and refuses what is not what it is said to be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
from document_files import Tool, contents, read_documents
from token_folders import assert_reads_as, copied, overwrite, random_documents, stream_of, windows_of, write_dataset
from tokenizers import AddedToken, Tokenizer

from data_tools.datatrove_steps import quiet
from data_tools.verify import verify_folder
from smol_data.manifest import Manifest, read_manifest

EOS = "<|end_of_text|>"


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    """Real prose, short of what makes the tests slow."""
    return [document["text"][:3000] for document in read_documents(corpus / "docs")][:200]


@pytest.fixture(scope="module")
def large_tokenizer(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ids in a vocabulary that needs uint32."""
    folder = tmp_path_factory.mktemp("large") / "tokenizer"
    folder.mkdir()
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.add_tokens([AddedToken(f"<{index}>", normalized=False) for index in range(2**16 + 1 - 2000)])
    loaded.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes((tokenizer / "tokenizer_config.json").read_bytes())
    return folder


def stock_tokens(folder: Path, tokenizer: Path, texts: list[str], tasks: int = 1, **options: Any) -> Path:
    """A folder by datatrove's own DocumentTokenizer."""
    options = {"eos_token": EOS, "seed": 5} | options
    for rank in range(tasks):
        step = DocumentTokenizer(str(folder), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"), **options)
        with quiet():
            step.run((Document(text=text, id="") for text in texts[rank::tasks]), rank, tasks)
    for half_made in folder.glob("*_unshuffled.ds*"):
        half_made.unlink()
    return folder


@pytest.mark.parametrize(("which", "dtype"), [("tokenizer", "uint16"), ("large_tokenizer", "uint32")])
def test_stock_datatrove_output_is_adopted_and_read_token_by_token(
    tool: Tool, texts: list[str], tmp_path: Path, request: pytest.FixtureRequest, which: str, dtype: str
) -> None:
    tokenizer: Path = request.getfixturevalue(which)
    folder = stock_tokens(tmp_path / "stock", tokenizer, texts, tasks=2)
    before = contents(folder)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert outcome.code == 0, outcome
    assert f"200 documents, {read_manifest(folder).tokens:,} tokens ({dtype}, EOS 0), 2 shards" in outcome.out
    manifest = read_manifest(folder)
    assert (manifest.dtype, manifest.eos_id, manifest.eos_ends_documents, manifest.seed) == (dtype, 0, True, None)
    assert [entry.name for entry in manifest.files] == sorted(before)
    assert {name: data for name, data in contents(folder).items() if name != "manifest.json"} == before
    assert (verify_folder(folder).faults, verify_folder(folder).warnings) == ([], [])
    stream, ends = stream_of(folder)
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert sorted(decoder.decode(part.tolist()) for part in np.split(stream, ends[:-1])) == sorted(texts)
    assert_reads_as(folder, stream)


def test_merged_output_is_adopted(tool: Tool, tokenizer: Path, texts: list[str], tmp_path: Path) -> None:
    parts = stock_tokens(tmp_path / "parts", tokenizer, texts, tasks=3)
    merger = DocumentTokenizerMerger(str(parts), str(tmp_path / "merged"), "all", seed=1, progress=False)
    with quiet():
        merger.run(None)
    for own in (tmp_path / "merged").glob("0*.metadata"):  # older versions write the total alone
        own.unlink()
    assert tool("manifest", tmp_path / "merged", "--tokenizer", tokenizer, "--workers", "1").code == 0
    assert {entry.name for entry in read_manifest(tmp_path / "merged").files} == {
        "000_all.ds",
        "000_all.ds.index",
        "all.ds.metadata",
    }
    assert_reads_as(tmp_path / "merged", stream_of(tmp_path / "merged")[0])


def test_a_stock_chunk_shuffle_is_adopted_with_its_chunk_size(
    tool: Tool, tokenizer: Path, texts: list[str], tmp_path: Path
) -> None:
    folder = stock_tokens(tmp_path / "stock", tokenizer, texts, tasks=2, shuffle_chunk_size=129)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert outcome.code == 2
    assert "a document ends with id" in outcome.err
    assert "--window-tokens if they were shuffled in chunks" in outcome.err
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1", "--window-tokens", "130")
    assert outcome.code == 2
    assert "is not made of chunks of window_tokens=130" in outcome.err
    assert not (folder / "manifest.json").exists()
    assert tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1", "--window-tokens", "129").code == 0
    assert read_manifest(folder).window_tokens == 129
    stream, _ = stream_of(folder)
    assert windows_of(folder, 128) == stream.reshape(-1, 129).tolist()


def test_documents_without_eos_need_to_be_told_so(tool: Tool, tokenizer: Path, texts: list[str], tmp_path: Path) -> None:
    folder = stock_tokens(tmp_path / "stock", tokenizer, texts, eos_token=None)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert outcome.code == 2
    assert "not with EOS 0; 200 such ends; give --eos-id or --no-eos if the documents end otherwise" in outcome.err
    assert tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1", "--no-eos").code == 0
    manifest = read_manifest(folder)
    assert (manifest.eos_id, manifest.eos_ends_documents) == (None, False)


def test_a_folder_that_cannot_be_written_to_is_refused(
    tool: Tool, tokenizer: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stock_tokens(tmp_path / "stock", tokenizer, texts[:5])

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full_disk)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert (outcome.code, "manifest.json cannot be written (No space left on device)" in outcome.err) == (2, True)
    monkeypatch.setattr("os.access", lambda *_: False)
    outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
    assert (outcome.code, "stock cannot be written to; ask for the right" in outcome.err) == (2, True)


def test_another_end_token_can_be_named(tool: Tool, tokenizer: Path, texts: list[str], tmp_path: Path) -> None:
    folder = stock_tokens(tmp_path / "stock", tokenizer, texts, eos_token="<|im_end|>")
    assert tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1").code == 2
    assert tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1", "--eos-id", "3").code == 0
    assert read_manifest(folder).eos_id == 3
    (folder / "manifest.json").unlink()
    chat = copied(tokenizer, tmp_path / "chat")
    (chat / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert tool("manifest", folder, "--tokenizer", chat, "--workers", "1").code == 0
    assert read_manifest(folder).eos_id == 3


def test_eos_inside_documents_is_noted_for_the_readers(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    folder = stock_tokens(tmp_path / "stock", tokenizer, [f"a text {EOS} with the token's name in it"] * 3)
    assert tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1").code == 0
    assert read_manifest(folder).eos_ends_documents is False


def test_folders_that_cannot_be_adopted_are_refused_with_one_sentence(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    texts = ["some text", "more text", "and more"]
    good = stock_tokens(tmp_path / "good", tokenizer, texts)
    shard = next(good.glob("*.ds")).name

    def variant(name: str) -> Path:
        return copied(good, tmp_path / name)

    (no_metadata := variant("no_metadata")).joinpath(f"{shard}.metadata").unlink()
    (no_index := variant("no_index")).joinpath(f"{shard}.index").unlink()
    (bad_metadata := variant("bad_metadata")).joinpath(f"{shard}.metadata").write_text("Unknown Tokenizer\n5\n")
    (other := variant("other")).joinpath(f"{shard}.metadata").write_text(f"sha256:{'1' * 64}|2\n5\n")
    (two_sizes := variant("two_sizes")).joinpath("z.ds.metadata").write_text("x|4\n5\n")
    (wrong_size := variant("wrong_size")).joinpath(f"{shard}.metadata").write_text("x|4\n5\n")
    with (odd := variant("odd")).joinpath(shard).open("ab") as file:
        file.write(b"x")
    overwrite((big_id := variant("big_id")) / shard, 0, b"\xff\xff")
    overwrite((descending := variant("descending")) / f"{shard}.index", 0, (10**6).to_bytes(8, "little"))
    (mixed := variant("mixed")).joinpath("a.bin").write_bytes(b"")
    write_dataset(adopted := tmp_path / "adopted", [random_documents(0, 3)])
    (empty := tmp_path / "empty").mkdir()
    (hollow := tmp_path / "hollow").mkdir()
    for name, data in (("a.ds", b""), ("a.ds.index", b""), ("a.ds.metadata", b"x|2\n0\n")):
        (hollow / name).write_bytes(data)
    before = contents(tmp_path)
    for folder, sentence in (
        (tmp_path / "nowhere", "is not a folder; name one that holds *.ds or *.bin files"),
        (empty, "holds no *.ds and no *.bin file; name a folder of token shards"),
        (hollow, "its 1 shards hold no token; name another folder"),
        (adopted, f"has a manifest.json already; check it with `python -m data_tools verify {adopted}`"),
        (no_metadata, "has no *.ds.metadata, which tells the bytes per id; write a text file all.ds.metadata there"),
        (no_index, f"{shard} has no {shard}.index; write it with save_index=True"),
        (bad_metadata, "its first line does not end with |2 or |4, the bytes per id; write it so"),
        (other, f"made by a tokenizer with sha256:{'1' * 64}, but --tokenizer"),
        (two_sizes, f"ids of 2 bytes by {shard}.metadata, of 4 bytes by z.ds.metadata; put them into folders of their own"),
        (odd, "not a multiple of 2; copy it again"),
        (big_id, f"{shard} bytes 0-1: id 65535 is not below vocab_size 2000; 1 such ids; name with --tokenizer the one"),
        (descending, f"{shard}.index bytes 0-7: document 0 ends at token 1000000, before its start or behind the shard's"),
        (mixed, "holds *.ds and a.bin; two formats make no one dataset: keep one of them there"),
    ):
        outcome = tool("manifest", folder, "--tokenizer", tokenizer, "--workers", "1")
        assert (outcome.code, sentence in outcome.err) == (2, True), (folder, outcome)
    assert tool("manifest", wrong_size, "--tokenizer", tokenizer, "--workers", "1").code == 2
    assert contents(tmp_path) == before
