"""`shuffle`: the order of one shuffle in memory, whatever memory, workers and kills; nothing lost, nothing twice."""

import json
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from document_files import Tool, contents, python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shuffled_tokens import S, shuffled, write_source
from token_folders import copied, list_anew, overwrite, stream_of, write_dataset

from data_tools import chunk_runs
from data_tools.verify import verify_folder
from smol_data.manifest import FileEntry, read_manifest
from smol_data.permutation import permute, round_keys
from smol_data.shards import TokenDataset


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "tokens")


def in_memory(source: Path, width: int, seed: int, epoch: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The same shuffle the plain way: all chunks at once, each with its document ends."""
    stream, ends = stream_of(source)
    count = len(stream) // width
    keys = round_keys("chunk shuffle", 1, seed, epoch)
    chunk_at = {permute(number, count, keys): number for number in range(count)}
    tokens, new_ends = [], []
    for place in range(count):
        begins = chunk_at[place] * width
        tokens.append(stream[begins : begins + width])
        inside = ends[(ends > begins) & (ends < begins + width)] - begins
        new_ends += [place * width + int(end) for end in np.unique(inside)] + [(place + 1) * width]
    return np.concatenate(tokens), np.array(new_ends)


def assert_is_the_shuffle(out: Path, source: Path, width: int, seed: int = 1, epoch: int = 0) -> None:
    for ours, expected in zip(stream_of(out), in_memory(source, width, seed, epoch), strict=True):
        assert np.array_equal(ours, expected)


def test_the_result_is_that_of_one_shuffle_in_memory(source: Path, tmp_path: Path) -> None:
    out = shuffled(source, tmp_path / "out")
    assert_is_the_shuffle(out, source, S + 1)
    tokens, before = stream_of(out)[0].reshape(-1, S + 1), stream_of(source)[0]
    assert Counter(map(bytes, tokens)) == Counter(map(bytes, before[: tokens.size].reshape(-1, S + 1)))


lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30)


@given(
    shards=st.lists(lengths, min_size=1, max_size=3),
    width=st.integers(2, 20),
    run=st.integers(1, 40),
    shard=st.integers(1, 900),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cut_into_documents_shards_runs_and_pieces_gives_that_order(
    tmp_path: Path, shards: list[list[int]], width: int, run: int, shard: int
) -> None:
    """Documents may be empty, shards too; chunks may be longer or shorter than either."""
    random = np.random.default_rng(0)
    documents = [[random.integers(0, 50, size=length) for length in part] for part in shards]
    if sum(map(sum, shards)) < width:
        return
    for name in ("in", "out"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    source = write_dataset(tmp_path / "in", documents, eos_id=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)  # hundreds of small files, of which none must outlive a power cut
        out = shuffled(source, tmp_path / "out", run, sequence_length=width - 1, shard_size=shard)
    assert_is_the_shuffle(out, source, width)
    assert verify_folder(out).faults == []


def test_the_folder_is_whole_and_training_reads_its_chunks_as_windows(source: Path, tmp_path: Path) -> None:
    out = shuffled(source, tmp_path / "out", epoch=3)
    verdict, before = verify_folder(out), read_manifest(source)
    assert (verdict.faults, verdict.warnings) == ([], [])
    manifest = read_manifest(out)
    assert (manifest.seed, manifest.window_tokens, manifest.eos_id, manifest.eos_ends_documents) == (1, S + 1, 0, True)
    assert (manifest.tokenizer, manifest.vocab_size, manifest.dtype) == (before.tokenizer, before.vocab_size, before.dtype)
    assert [shard.name for shard in manifest.shards] == [f"{number:05d}_shuffled.ds" for number in range(len(manifest.shards))]
    assert len(manifest.shards) > 2
    assert all(shard.bytes <= 40_000 for shard in manifest.shards)
    record = json.loads((out / "report.json").read_text())
    chunks = before.tokens // (S + 1)
    assert (record["seed"], record["epoch"], record["chunks"]) == (1, 3, chunks)
    assert record["source_digest"] == before.digest
    assert record["tokens_left_out"] == before.tokens - manifest.tokens == before.tokens % (S + 1)
    dataset = TokenDataset(out, S)
    assert dataset.num_windows == chunks
    stream = stream_of(out)[0].reshape(-1, S + 1)
    assert all(np.array_equal(dataset.window(number).tokens, stream[number]) for number in range(chunks))
    dataset.close()


def test_neither_memory_nor_workers_change_a_byte(tool: Tool, source: Path, tmp_path: Path) -> None:
    one = contents(shuffled(source, tmp_path / "one", run_chunks=10**6))
    for run_chunks in (1000, 97):
        assert contents(shuffled(source, tmp_path / str(run_chunks), run_chunks)) == one
    assert contents(shuffled(source, tmp_path / "workers", run_chunks=700, workers=2)) == one
    arguments = ["--seed", 1, "--sequence-length", S, "--shard-size", "40KB", "--workers", 1]
    outcome = tool("shuffle", source, tmp_path / "tool", *arguments)
    assert outcome.code == 0, outcome
    manifest = read_manifest(source)
    assert f"{manifest.tokens // (S + 1):,} chunks of {S + 1} tokens in 5 shards, seed 1, epoch 0" in outcome.out
    assert f"left out: the last {manifest.tokens % (S + 1)} tokens, fewer than a chunk" in outcome.out
    assert "flags" not in outcome.out
    assert contents(tmp_path / "tool") == one


def test_flags_of_documents_are_left_out_and_it_is_said(tool: Tool, source: Path, tmp_path: Path) -> None:
    flagged = copied(source, tmp_path / "flagged")
    (flagged / "00000.ds.flags").write_bytes(bytes(660))
    manifest = read_manifest(flagged)
    entry = FileEntry(name="00000.ds.flags", bytes=660, sha256="")
    manifest.model_copy(update={"files": sorted([*manifest.files, entry], key=lambda entry: entry.name)}).write(flagged)
    list_anew(flagged)
    outcome = tool("shuffle", flagged, tmp_path / "out", "--seed", 1, "--sequence-length", S, "--workers", 1)
    assert outcome.code == 0
    assert "left out: the documents' flags, since chunks hold parts of documents" in outcome.out
    assert (verify_folder(tmp_path / "out").faults, verify_folder(tmp_path / "out").warnings) == ([], [])


def test_seed_and_epoch_each_give_another_order_of_the_same_chunks(source: Path, tmp_path: Path) -> None:
    orders = {
        (seed, epoch): stream_of(shuffled(source, tmp_path / f"{seed}-{epoch}", seed=seed, epoch=epoch))[0].reshape(-1, S + 1)
        for seed, epoch in ((0, 0), (1, 0), (0, 1), (1, 1))
    }
    assert len({order.tobytes() for order in orders.values()}) == 4
    assert len({tuple(sorted(map(bytes, order))) for order in orders.values()}) == 1


def test_every_chunk_is_as_likely_at_every_place() -> None:
    """Over 400 seeds, 64 chunks by 64 places in an 8 x 8 table: 49 degrees of freedom; 85.4 is exceeded once in 1,000."""
    count, table = 64, np.zeros((8, 8))
    neighbours = 0
    for seed in range(400):
        plan = Namespace(seed=seed, epoch=0, chunks=count)
        goes_to = chunk_runs.places(plan, 0, count).astype(int)  # type: ignore[arg-type]
        assert sorted(goes_to) == list(range(count))
        np.add.at(table, (np.arange(count) // 8, goes_to // 8), 1)
        neighbours += int((np.diff(goes_to) == 1).sum())
    expected = 400 * count / 64
    assert ((table - expected) ** 2 / expected).sum() < 85.4
    assert 300 < neighbours < 500  # 400 * 63 / 64 are expected, standard deviation about 20


def test_the_order_is_frozen() -> None:
    plan = Namespace(seed=6, epoch=2, chunks=1_000_003)
    assert chunk_runs.places(plan, 999_990, 4).tolist() == [574_361, 465_832, 641_369, 727_615]  # type: ignore[arg-type]


def test_a_set_of_chunks_is_shuffled_again_with_its_own_chunks(tool: Tool, source: Path, tmp_path: Path) -> None:
    once = shuffled(source, tmp_path / "once")
    again = shuffled(once, tmp_path / "again", sequence_length=None, seed=9)
    assert_is_the_shuffle(again, once, S + 1, seed=9)
    assert not np.array_equal(stream_of(again)[0], stream_of(once)[0])
    assert read_manifest(again).documents == read_manifest(once).documents
    outcome = tool("shuffle", once, tmp_path / "other", "--seed", 1, "--sequence-length", 64)
    assert outcome.code == 2
    assert "--sequence-length 64: " in outcome.err
    assert f"is made of chunks of {S + 1} tokens; leave the flag out" in outcome.err


MEASURED = """
import sys
from pathlib import Path
import smol_console
from data_tools import chunk_runs, output, parallel, shuffle
from data_tools.__main__ import main

def peak():  # of this process alone: getrusage's begins with the peak of the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
code = main(["shuffle", *sys.argv[1:], "--seed", "1", "--sequence-length", "4096", "--memory", "32MB", "--workers", "1"])
print("grown", peak() - before)
sys.exit(code)
"""


def test_memory_stays_within_what_was_given(tmp_path: Path) -> None:
    """200 MB of tokens under --memory 32MB: by so much the process may grow at most."""
    random = np.random.default_rng(0)
    documents = [random.integers(1, 2000, size=2000) for _ in range(50)] * 1000
    source = write_dataset(tmp_path / "in", [documents], eos_id=None)
    done = python("-c", MEASURED, source, tmp_path / "out")
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "out").tokens * 2 > 199_000_000
    assert int(done.out.split("grown ")[1]) < 32_000_000


def test_content_that_does_not_agree_is_not_released(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smol_config import UserError

    read = chunk_runs._Run.tokens

    def flipped(run: chunk_runs._Run, *where: int) -> NDArray[Any]:
        tokens = read(run, *where).copy()
        tokens[0, 5] ^= 1
        return tokens

    with monkeypatch.context() as patch:
        patch.setattr(chunk_runs._Run, "tokens", flipped)
        with pytest.raises(UserError, match="the chunks written are not those read"):
            shuffled(source, tmp_path / "flipped")
    with monkeypatch.context() as patch:
        patch.setattr(chunk_runs, "permute_many", lambda numbers, *_: numbers // np.uint64(2))
        with pytest.raises(UserError, match="do not hold each chunk once; give the command again with --fresh"):
            shuffled(source, tmp_path / "twice")
    with monkeypatch.context() as patch:
        patch.setattr(chunk_runs, "make_shard", cutting(chunk_runs.make_shard))
        with pytest.raises(UserError, match="run-00002 was cut short; check the disk"):
            shuffled(source, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(chunk_runs, "make_shard", forgetting(chunk_runs.make_shard))
        with pytest.raises(UserError, match=r"part run-00000 of .* is not finished; give the same command again"):
            shuffled(source, tmp_path / "forgotten")
    assert not any((tmp_path / name).exists() for name in ("flipped", "twice", "cut", "forgotten"))


def cutting(make_shard: Any) -> Any:
    def make(task: chunk_runs.PartTask, advance: Any) -> Any:
        with (task.plan.working.files / "run-00002").open("r+b") as file:
            file.truncate(15_000)
        return make_shard(task, advance)

    return make


def forgetting(make_shard: Any) -> Any:
    def make(task: chunk_runs.PartTask, advance: Any) -> Any:
        (task.plan.working.root / "parts" / "run-00000.json").unlink(missing_ok=True)
        return make_shard(task, advance)

    return make


def test_bad_input_is_refused_with_one_sentence(
    tool: Tool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("x")
    damaged = copied(source, tmp_path / "damaged")
    overwrite(damaged / "00001.ds.index", 8 * 659, b"\0\0")
    list_anew(damaged)
    new, before = tmp_path / "new", contents(tmp_path)
    good = ("--seed", 1, "--sequence-length", S, "--workers", 1)
    for arguments, sentence in (
        ((source, new, "--seed", 1), "--sequence-length is missing: give the run's data.sequence_length"),
        ((source, new, "--sequence-length", S), "the following arguments are required: --seed"),
        ((source, new, "--seed", 1, "--sequence-length", 10**6), "tokens, not one chunk of 1000001; shorten --sequence-length"),
        ((source, new, *good, "--memory", "4MB"), "--memory leaves 4,000,000 bytes a worker, too little for chunks of"),
        ((source, new, *good, "--memory", "lots"), "'lots' is not a size; write it like 500MB or 2GB"),
        ((source, tmp_path / "used", *good), "is not empty; name a new folder"),
        ((tmp_path / "used", new, *good), "manifest.json cannot be read"),
        ((damaged, new, *good), "00001.ds.index ends at token"),
    ):
        outcome = tool("shuffle", *arguments)
        assert (outcome.code, sentence in outcome.err) == (2, True), (arguments, outcome)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Namespace(free=1000))
    outcome = tool("shuffle", source, new, *good)
    assert outcome.code == 2
    assert "has 1,000 bytes free, but shuffling needs twice the dataset" in outcome.err
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "used"]


def test_memory_too_small_for_sequential_reads_is_noted(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shuffled(source, tmp_path / "out", run_chunks=100)
    assert "note: --memory is small for" in capfd.readouterr().err
    shuffled(source, tmp_path / "all", run_chunks=10**6)
    assert "note:" not in capfd.readouterr().err
