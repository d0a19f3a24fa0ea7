"""`stats`: counts equal those of a plain loop over the documents, in whatever blocks and processes they are read."""

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from document_files import Tool, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from token_folders import random_documents, write_dataset

from data_tools import document_lengths
from data_tools.document_lengths import EDGES, THRESHOLDS, Lengths, LengthTask, count, measure
from data_tools.run_config import load_data_run
from smol_data.manifest import FileEntry, Manifest, TokenizerIdentity, read_manifest
from smol_data.order import dataset_positions


def write_config(path: Path, datasets: dict[str, Path], steps: int = 40) -> Path:
    data = {"tokenizer": "t", "sequence_length": 16, "datasets": {name: str(folder) for name, folder in datasets.items()}}
    data["stages"] = [{"name": "s", "steps": steps, "weights": dict.fromkeys(datasets, 1.0)}]
    path.write_text(yaml.safe_dump({"data": data, "train": {"global_batch_size": 4}}, sort_keys=False), encoding="utf8")
    return path


def counted(lengths: NDArray[np.int64]) -> Lengths:
    found = Lengths()
    found.add(lengths)
    return found


@given(st.lists(st.one_of(st.integers(1, 20), st.integers(1, 200_000), st.integers(0, 2**42)), max_size=60), st.integers(0, 60))
@settings(max_examples=200)
def test_histograms_are_those_of_a_plain_loop(lengths: list[int], cut: int) -> None:
    found = counted(np.array(lengths[:cut], dtype=np.int64))
    found.merge(counted(np.array(lengths[cut:], dtype=np.int64)))
    upper = [*EDGES[1:].tolist(), 2**60]
    for lower, end, documents, tokens in zip(EDGES.tolist(), upper, found.documents, found.tokens, strict=True):
        inside = [length for length in lengths if lower <= length < end]
        assert (documents, tokens) == (len(inside), sum(inside))
    for threshold, (documents, tokens) in zip(THRESHOLDS, found.longer.tolist(), strict=True):
        above = [length for length in lengths if length > threshold]
        assert (documents, tokens) == (len(above), sum(above))
    assert (found.shortest, found.longest) == ((min(lengths), max(lengths)) if lengths else (None, None))
    if lengths:
        exact = sorted(lengths)[-(-len(lengths) // 2) - 1]
        assert found.quantile(0.5) == pytest.approx(exact, rel=0.05, abs=0.5) or exact >= EDGES[-1]
        assert found.mean == pytest.approx(sum(lengths) / len(lengths))
    else:
        assert (found.quantile(0.5), found.mean) == (0.0, 0.0)


def test_bins_are_narrow_and_hold_every_length() -> None:
    assert EDGES[0] == 0
    widths, lower = np.diff(EDGES)[1:], EDGES[1:-1]
    assert (widths <= 1 + 0.0906 * lower).all()  # an eighth of a doubling, and the rounding to whole numbers
    assert EDGES[-1] == 2**40


def test_ranges_that_cross_blocks_and_shards_count_every_document_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [random_documents(seed, size) for seed, size in enumerate((300, 1, 0, 500))]
    folder = write_dataset(tmp_path / "tokens", shards)
    whole = counted(np.array([len(document) for shard in shards for document in shard]))
    monkeypatch.setattr(document_lengths, "BLOCK", 7)
    seen = []
    for size in (1, 13, 300, 801):
        found = Lengths()
        for first in range(0, 801, size):
            found.merge(count(LengthTask(folder, first, min(first + size, 801)), seen.append))
        assert found.documents.tolist() == whole.documents.tolist()
        assert found.tokens.tolist() == whole.tokens.tolist()
        assert (found.shortest, found.longest) == (whole.shortest, whole.longest)
    assert sum(seen) == 4 * 801


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_dataset(tmp_path / name, [random_documents(seed, 400)]) for seed, name in enumerate("ab")]
    alone = measure(folders, 1)
    monkeypatch.setattr(document_lengths, "PER_TASK", 150)
    shared = measure(folders, 2)
    for (_, one), (manifest, other) in zip(alone, shared, strict=True):
        assert one.documents.tolist() == other.documents.tolist()
        assert other.tokens.sum() == manifest.tokens


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """Two million documents, 16 MB of index; the tokens are a hole in the file."""
    lengths = np.random.default_rng(0).geometric(1 / 500, size=2_000_000)
    ends, path = np.cumsum(lengths), tmp_path / "a.ds"
    ends.astype("<u8").tofile(f"{path}.index")
    with path.open("wb") as file:
        file.truncate(2 * int(ends[-1]))
    sizes = {"tokens": int(ends[-1]), "documents": len(ends)}
    files = [FileEntry(name="a.ds", bytes=2 * sizes["tokens"], sha256="0", **sizes)]
    files.append(FileEntry(name="a.ds.index", bytes=8 * len(ends), sha256="0"))
    manifest = Manifest(tokenizer=TokenizerIdentity(name="t", sha256="0"), vocab_size=9, dtype="uint16", files=files, **sizes)
    manifest.write(tmp_path)
    del ends
    tracemalloc.start()
    ((_, found),) = measure([tmp_path], 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6  # bytes: blocks of 1 MiB and what is made of one
    assert int(found.documents.sum()) == 2_000_000
    assert int(found.tokens.sum()) == int(lengths.sum())


def test_real_text_in_a_table_and_files(tool: Tool, tokens: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", {"prose": tokens}, steps=5000)
    outcome = tool("stats", tokens, "--config", config, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert set(contents(tmp_path / "out")) == {"stats.json", "stats.csv", "histogram.csv", "document_lengths.png", "tokens.png"}
    manifest = read_manifest(tokens)
    lengths = np.concatenate([np.diff(np.fromfile(path, "<u8"), prepend=0) for path in sorted(tokens.glob("*.index"))])
    (stats,) = json.loads((tmp_path / "out" / "stats.json").read_text())["datasets"]
    assert (stats["name"], stats["documents"], stats["tokens"]) == ("prose", manifest.documents, manifest.tokens)
    assert (stats["shortest"], stats["longest"]) == (lengths.min(), lengths.max())
    for threshold in THRESHOLDS:
        above = lengths[lengths > threshold]
        share = above.sum() / lengths.sum()
        assert stats["longer_than"][str(threshold)] == {
            "documents": len(above),
            "tokens": above.sum(),
            "share_of_tokens": pytest.approx(share),
        }
    assert stats["longer_than"]["4096"]["documents"] > 10
    assert sum(row["documents"] for row in stats["histogram"]) == manifest.documents
    drawn = dataset_positions(load_data_run(config).segments())["prose"] * 16
    assert stats["epochs"] == pytest.approx(drawn / manifest.tokens)
    (row,) = csv.DictReader((tmp_path / "out" / "stats.csv").open(encoding="utf8"))
    assert int(row["tokens_longer_than_4096"]) == lengths[lengths > 4096].sum()
    rows = list(csv.DictReader((tmp_path / "out" / "histogram.csv").open(encoding="utf8")))
    assert sum(int(row["tokens"]) for row in rows) == manifest.tokens
    for name in ("document_lengths.png", "tokens.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    line = next(line for line in outcome.out.splitlines() if line.startswith("prose")).split()
    assert line[1:3] == [f"{manifest.documents:,}", f"{manifest.tokens:,}"]
    assert line[-1] == f"{stats['epochs']:.2f}"


def test_names_come_from_the_configuration_or_the_folders(tool: Tool, tmp_path: Path) -> None:
    folders = {name: write_dataset(tmp_path / name / "x", [random_documents(1, 50)]) for name in ("a", "b", "c")}
    config = write_config(tmp_path / "run.yaml", {"web": folders["a"], "gone": tmp_path / "nowhere", "code": folders["b"]})

    def names(*arguments: object) -> list[str]:
        outcome = tool("stats", *arguments)
        assert outcome.code == 0, outcome
        return [line.split()[0] for line in outcome.out.splitlines()[1:] if line][:-1]

    assert names("--config", config) == ["web", "code"]  # all that are there
    assert names("--config", config, folders["b"], folders["c"]) == ["code", "x"]
    assert names(folders["a"], folders["b"]) == ["x", str(folders["b"])]
    table = tool("stats", folders["a"]).out
    assert "epochs" not in table
    assert table.splitlines()[1].split()[3:5] == ["100.0", "%"]


def test_chunks_are_said_to_be_pieces(tool: Tool, tmp_path: Path) -> None:
    chunks = [np.arange(1, 17)] * 20
    folder = write_dataset(tmp_path / "chunks", [chunks], window_tokens=16, eos_id=None)
    outcome = tool("stats", folder)
    assert "chunks*" in outcome.out
    assert "* shuffled offline in chunks: documents are the pieces that lie in one chunk" in outcome.out


def test_many_datasets_are_drawn_as_the_largest_and_the_rest(tool: Tool, tmp_path: Path) -> None:
    folders = [write_dataset(tmp_path / f"d{number:02}", [random_documents(number, 5 + number)]) for number in range(13)]
    outcome = tool("stats", *folders, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert (tmp_path / "out" / "document_lengths.png").stat().st_size > 10_000


def test_bad_input_is_refused_with_one_sentence(tool: Tool, tmp_path: Path) -> None:
    good = write_dataset(tmp_path / "good", [random_documents(0, 9)])
    stock = tmp_path / "stock"
    stock.mkdir()
    (stock / "a.ds").write_bytes(b"\0\0")
    cut = write_dataset(tmp_path / "cut", [random_documents(0, 9)])
    (cut / "00000.ds.index").write_bytes(b"\0" * 16)
    empty = write_config(tmp_path / "empty.yaml", {"a": tmp_path / "nowhere"})
    before = contents(tmp_path)
    cases: tuple[tuple[tuple[Any, ...], str], ...] = (
        ((), "no token dataset to look at; give folders, or --config"),
        (("--config", empty), "no token dataset to look at"),
        ((good, tmp_path / "good" / "."), "is given twice; name it once"),
        ((stock,), "manifest.json cannot be read (No such file or directory)"),
        ((cut,), "00000.ds.index has 16 bytes, but its manifest says 72"),
        ((good, "--output", stock), "is not empty; name a new folder"),
        ((good, "--workers", "0"), "0 is too small; give 1 or more"),
    )
    for arguments, sentence in cases:
        outcome = tool("stats", *arguments)
        assert (outcome.code, outcome.out, sentence in outcome.err) == (2, "", True), (sentence, outcome)
    assert contents(tmp_path) == before
