"""Shard files: both formats say the same, few descriptors are open, reads are tried again, and document ends are found."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_data import open_files as files_module
from smol_data.files import TokenFiles
from smol_data.manifest import DataError, FileEntry, Manifest, TokenizerIdentity, read_manifest
from smol_data.open_files import OpenFiles, ReadStats
from smol_data.shards import TokenDataset, open_datasets


def token_files(folder: Path) -> TokenFiles:
    return TokenFiles(folder, read_manifest(folder), OpenFiles())


def open_descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between attempts, not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(files_module.time, "sleep", waited.append)
    return waited


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A process that may have twice as many files open as it has now, and a few: a quarter of that is left to a loader."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 2 * max(open_descriptors()) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, before[1]))
    yield allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_megatrons_files_and_datatroves_give_the_same_windows(make_dataset: Callable, dtype: str) -> None:
    ours, theirs = (make_dataset(name, shards=3, dtype=dtype, megatron=name == "theirs") for name in ("ours", "theirs"))
    assert [e.name for e in read_manifest(theirs.folder).shards] == [f"{i:03d}_theirs.bin" for i in range(3)]
    one, other = TokenDataset(ours.folder, 512), TokenDataset(theirs.folder, 512)
    assert one.num_windows == other.num_windows > 100
    for index in range(one.num_windows):
        for mine, megatrons in zip(one.window(index), other.window(index), strict=True):
            assert np.array_equal(mine, megatrons)


def test_documents_read_off_the_tokens_are_those_of_the_index(make_dataset: Callable) -> None:
    by_index, by_eos = (make_dataset(name, shards=3, eos_ends_documents=name == "eos") for name in ("index", "eos"))
    one, other = TokenDataset(by_index.folder, 200), TokenDataset(by_eos.folder, 200)
    (by_eos.folder / "000_eos.ds.index").unlink()
    other.close()
    for index in range(one.num_windows):
        assert one.window(index).document_ends.tolist() == other.window(index).document_ends.tolist()


def test_thousands_of_shards_open_under_a_low_limit(make_dataset: Callable, few_descriptors: int) -> None:
    docs = [np.array([*b"word ", 256])] * 3000
    folders = {name: str(make_dataset(name, docs, shards=1000).folder) for name in ("one", "two", "three")}
    datasets = open_datasets(folders, 5, "byte-level")
    for dataset in datasets.values():
        for index in range(0, dataset.num_windows, 7):
            dataset.window(index)
    assert len(open_descriptors()) < few_descriptors
    datasets["one"].close()


def test_closing_closes_and_reading_opens_again(make_dataset: Callable) -> None:
    made = make_dataset(shards=40)
    before = len(open_descriptors())
    dataset = TokenDataset(made.folder, 512, files=OpenFiles(limit=5))
    for _ in range(2):
        for index in range(dataset.num_windows):
            dataset.will_need(index)
            dataset.window(index)
        assert len(open_descriptors()) == before + 5
        dataset.close()
        assert len(open_descriptors()) == before


def test_a_read_that_fails_for_a_while_is_tried_again(
    make_dataset: Callable, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    made = make_dataset()
    dataset = TokenDataset(made.folder, 512)
    failures = iter([OSError(5, "Input/output error"), OSError(116, "Stale file handle")])
    real = os.pread

    def flaky(descriptor: int, size: int, offset: int) -> bytes:
        if (failure := next(failures, None)) is not None:
            raise failure
        return real(descriptor, size, offset)

    monkeypatch.setattr(files_module.os, "pread", flaky)
    assert np.array_equal(dataset.window(3).tokens, made.tokens[3 * 512 : 4 * 512 + 1])
    assert no_waiting == [0.1, 1.0]


def test_a_read_that_keeps_failing_is_named(
    make_dataset: Callable, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    dataset = TokenDataset(make_dataset(shards=1).folder, 512)

    def broken(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files_module.os, "pread", broken)
    with pytest.raises(DataError, match=r"000_text\.ds cannot be read at byte 5120 \(Input/output error\); check the storage"):
        dataset.window(5)
    assert len(no_waiting) == 3


def test_reads_are_counted_with_their_bytes_and_the_slowest(make_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    files = OpenFiles()
    dataset = TokenDataset(make_dataset(shards=1).folder, 512, files=files)
    files.take_stats()  # opening reads too
    waits = iter([0.0, 0.06, 0.03])
    real = os.pread

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        time.sleep(next(waits))
        return real(descriptor, size, offset)

    monkeypatch.setattr(files_module.os, "pread", slow)
    for window in range(3):
        dataset.files.tokens(512 * window, 513)
    stats = files.take_stats()
    assert (stats.reads, stats.bytes) == (3, 3 * 513 * dataset.files.dtype.itemsize)
    assert stats.seconds >= 0.09 and 0.06 <= stats.slowest <= stats.seconds - 0.03
    assert files.take_stats() == ReadStats()


def test_a_file_that_vanishes_is_named_at_once(make_dataset: Callable, no_waiting: list[float]) -> None:
    made = make_dataset(shards=1)
    dataset = TokenDataset(made.folder, 512)
    dataset.close()
    (made.folder / "000_text.ds").unlink()
    dataset.will_need(0)  # only a hint: the read tells
    with pytest.raises(DataError, match=r"000_text\.ds cannot be read at byte 0 \(No such file"):
        dataset.window(0)
    assert no_waiting == []


def test_short_reads_are_completed(make_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_dataset()
    dataset = TokenDataset(made.folder, 512)
    real = os.pread
    monkeypatch.setattr(files_module.os, "pread", lambda descriptor, size, offset: real(descriptor, min(size, 100), offset))
    assert np.array_equal(dataset.window(1).tokens, made.tokens[512:1025])


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1, 2, 3, 700, 90_000]), min_size=1, max_size=3000), st.data())
def test_the_document_of_any_token_is_found(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    """Also where lengths are as uneven as interpolation likes least."""
    folder = tmp_path_factory.mktemp("index")
    ends = np.cumsum(lengths)
    ends.astype("<u8").tofile(folder / "a.ds.index")
    manifest = Manifest(
        tokenizer=TokenizerIdentity(name="none", sha256="0"),
        vocab_size=2,
        dtype="uint16",
        tokens=int(ends[-1]),
        documents=len(ends),
        files=[FileEntry(name="a.ds", bytes=0, sha256="0", tokens=int(ends[-1]), documents=len(ends))],
    )
    files = TokenFiles(folder, manifest, OpenFiles())
    for token in data.draw(st.lists(st.integers(0, int(ends[-1]) - 1), min_size=1, max_size=20)):
        assert files.document_at(token) == np.searchsorted(ends, token, side="right")
        upto = min(int(ends[-1]), token + 5000)
        assert files.ends_between(token, upto).tolist() == ends[(ends > token) & (ends <= upto)].tolist()


def test_documents_are_numbered_through_the_shards(make_dataset: Callable) -> None:
    made = make_dataset(shards=5)
    files = token_files(made.folder)
    tokens = np.unique([0, *(made.ends - 1), *made.ends[:-1]])
    assert [files.document_at(t) for t in tokens.tolist()] == np.searchsorted(made.ends, tokens, side="right").tolist()


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"X", r"begins with b'XMIDIDX.*', version 1, dtype code 8, but a Megatron index of uint16 begins"),
        (9, b"\x02", "version 2, dtype code 8"),
        (17, b"\x04", "dtype code 4, but a Megatron index of uint16 begins with .* 1, 8"),
        (26, b"\x01\x00", "sequences in 0 documents, but the manifest says .* preprocess again without --split-sentences"),
    ],
)
def test_a_megatron_index_of_another_kind_is_refused(make_dataset: Callable, offset: int, value: bytes, message: str) -> None:
    made = make_dataset(megatron=True, shards=1)
    with (made.folder / "000_text.idx").open("r+b") as file:
        file.seek(offset)
        file.write(value)
    with pytest.raises(DataError, match=message):
        TokenDataset(made.folder, 512)
