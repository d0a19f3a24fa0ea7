"""Token datasets: windows equal slices of the whole stream, and damaged folders are named for what they are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smol_data.manifest import MANIFEST_NAME, DataError, read_manifest
from smol_data.shards import TokenDataset, open_datasets


def check_windows(dataset: TokenDataset, tokens: np.ndarray, ends: np.ndarray, stride: int) -> None:
    """Every window against slices of the tokens and document ends held in memory."""
    length = dataset.sequence_length
    for index in range(dataset.num_windows):
        window, first = dataset.window(index), index * stride
        assert np.array_equal(window.tokens, tokens[first : first + length + 1])
        inside = ends[(ends > first) & (ends <= first + length)] - first
        assert np.array_equal(window.document_ends, np.unique(inside))
        assert (window.tokens.dtype, window.document_ends.dtype) == (dataset.manifest.token_dtype, np.int32)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize(("shards", "length"), [(1, 512), (3, 512), (50, 2048)])
def test_windows_are_slices_of_the_stream_across_shards(make_dataset: Callable, dtype: str, shards: int, length: int) -> None:
    made = make_dataset(shards=shards, dtype=dtype)
    dataset = TokenDataset(made.folder, length)
    assert dataset.num_windows == (len(made.tokens) - 1) // length
    check_windows(dataset, made.tokens, made.ends, length)
    with pytest.raises(IndexError):
        dataset.window(dataset.num_windows)


@pytest.mark.parametrize(("length", "windows"), [(9, 1), (10, 0), (4, 2), (5, 1), (1, 9)])
def test_ten_tokens_have_this_many_windows(make_dataset: Callable, length: int, windows: int) -> None:
    made = make_dataset(docs=[np.arange(10)], shards=1)
    if windows:
        dataset = TokenDataset(made.folder, length)
        assert dataset.num_windows == windows
        check_windows(dataset, made.tokens, made.ends, length)
    else:
        with pytest.raises(DataError, match="has 10 tokens, fewer than one window"):
            TokenDataset(made.folder, length)


def test_documents_are_found_in_a_long_index(make_dataset: Callable) -> None:
    """Thousands of short documents, some without tokens: the binary search and more than one block of ends."""
    lengths = np.random.default_rng(0).integers(0, 4, size=5000)
    made = make_dataset(docs=[np.full(length, 7) for length in lengths], shards=2)
    for length in (1200, 13):
        dataset = TokenDataset(made.folder, length)
        assert dataset.num_windows == (lengths.sum() - 1) // length
        check_windows(dataset, made.tokens, made.ends, length)


def test_chunks_of_an_offline_shuffle_are_the_windows(make_dataset: Callable) -> None:
    made = make_dataset(window_tokens=129, shards=3)
    dataset = TokenDataset(made.folder, 128)
    assert dataset.num_windows == len(made.tokens) // 129
    check_windows(dataset, made.tokens, made.ends, 129)
    with pytest.raises(
        DataError, match=r"data\.sequence_length=64, but .* chunks of 129 tokens; set data\.sequence_length=128"
    ):
        TokenDataset(made.folder, 64)


# --- damage ---------------------------------------------------------------------------------------------------------


def rewrite_manifest(folder: Path, **changes: object) -> None:
    read_manifest(folder).model_copy(update=changes).write(folder)


def truncate_shard(folder: Path) -> None:
    os.truncate(folder / "001_text.ds", 1000)


def remove_shard(folder: Path) -> None:
    (folder / "001_text.ds").unlink()


def remove_index(folder: Path) -> None:
    (folder / "000_text.ds.index").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def other_index(folder: Path) -> None:
    ends = np.fromfile(folder / "000_text.ds.index", dtype="<u8")
    ends[-1] += 1
    ends.tofile(folder / "000_text.ds.index")


def wrong_dtype(folder: Path) -> None:
    rewrite_manifest(folder, dtype="uint32")


def wrong_dtype_and_count(folder: Path) -> None:
    """uint16 ids told as half as many uint32 ids: only the index can tell."""
    files = [e.model_copy(update={"tokens": e.tokens // 2}) if e.tokens else e for e in read_manifest(folder).files]
    rewrite_manifest(folder, dtype="uint32", files=files, tokens=sum(e.tokens or 0 for e in files))


def unlisted_index(folder: Path) -> None:
    rewrite_manifest(folder, files=[e for e in read_manifest(folder).files if not e.name.startswith("000_text.ds.")])


def wrong_total(folder: Path) -> None:
    rewrite_manifest(folder, tokens=5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_manifest, r"manifest\.json cannot be read"),
        (remove_shard, r"001_text\.ds is missing"),
        (truncate_shard, r"001_text\.ds has 1000 bytes, but its manifest says \d+; it was cut short"),
        (remove_index, r"000_text\.ds\.index is missing"),
        (other_index, r"000_text\.ds\.index ends at token \d+, but 000_text\.ds has \d+ tokens of uint16"),
        (wrong_dtype, r"000_text\.ds has \d+ bytes, but its counts in the manifest with dtype uint32 need \d+"),
        (wrong_dtype_and_count, r"000_text\.ds\.index ends at token \d+, but 000_text\.ds has \d+ tokens of uint32"),
        (unlisted_index, r"000_text\.ds\.index is not listed"),
        (wrong_total, "the shards sum to 4000 tokens, but the manifest's total is 5"),
    ],
)
def test_a_damaged_folder_is_refused_at_opening(make_dataset: Callable, damage: Callable[[Path], None], message: str) -> None:
    folder = make_dataset(docs=[np.arange(250)] * 16).folder
    TokenDataset(folder, 64).close()
    damage(folder)
    with pytest.raises(DataError, match=message):
        TokenDataset(folder, 64)


def test_a_file_cut_short_while_in_use_is_named(make_dataset: Callable) -> None:
    folder = make_dataset().folder
    dataset = TokenDataset(folder, 64)
    truncate_shard(folder)
    with pytest.raises(DataError, match=r"001_text\.ds has no bytes from \d+ on, .* cut short while in use"):
        dataset.window(dataset.num_windows - 1)


def test_an_id_outside_the_vocabulary_is_named_with_its_place(make_dataset: Callable) -> None:
    docs = [np.arange(250)] * 16
    docs[9] = np.where(docs[9] == 30, 999, docs[9])
    dataset = TokenDataset(make_dataset(docs=docs).folder, 64, name="web")
    dataset.window(0)
    with pytest.raises(DataError, match=r"dataset web: 001_text\.ds has id 999 at token 280, but .* vocab_size is 257"):
        dataset.window((9 * 250 + 30) // 64)


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_datasets_of_one_tokenizer_open_together(make_dataset: Callable, tokenizer_folder: tuple[str, str]) -> None:
    folder, sha256 = tokenizer_folder
    made = {name: str(make_dataset(name, tokenizer=("elsewhere", sha256)).folder) for name in ("a", "b")}
    assert list(open_datasets(made, 64, folder, vocab_size=257)) == ["a", "b"]
    with pytest.raises(DataError, match=r"dataset a was made by tokenizer 'elsewhere', but data\.tokenizer='hub/name'"):
        open_datasets(made, 64, "hub/name")
    with pytest.raises(DataError, match=r"dataset a has a vocabulary of 257 ids, but model\.vocab_size=256"):
        open_datasets(made, 64, folder, vocab_size=256)


def test_another_tokenizer_is_refused(make_dataset: Callable, tokenizer_folder: tuple[str, str]) -> None:
    folder, sha256 = tokenizer_folder
    made = {
        name: str(make_dataset(name, tokenizer=("hub/name", digit * 64)).folder) for name, digit in (("a", "1"), ("b", "2"))
    }
    with pytest.raises(DataError, match=f"dataset a .* SHA-256 1{{64}}, but data.tokenizer='{folder}' has {sha256}"):
        open_datasets(made, 64, folder)
    with pytest.raises(DataError, match=r"dataset b .* SHA-256 2{64}, but the tokenizer of dataset a has 1{64}"):
        open_datasets(made, 64, "hub/name")
