"""`verify`: whole folders pass; every kind of damage is found and named with its bytes; nothing is stopped by the first."""

import os
from pathlib import Path

import numpy as np
import pytest
from document_files import Tool, contents
from token_folders import copied, list_anew, overwrite, random_documents, stream_of, write_dataset

from data_tools import shard_checks
from data_tools.verify import verify_folder
from smol_data.manifest import read_manifest


@pytest.fixture
def folder(tokens: Path, tmp_path: Path) -> Path:
    """A copy of real shards, to be damaged."""
    return copied(tokens, tmp_path / "copy")


def shards_of(folder: Path) -> list[Path]:
    return [folder / shard.name for shard in read_manifest(folder).shards]


def test_a_whole_folder_is_told_so_with_its_counts(tool: Tool, tokens: Path) -> None:
    before = contents(tokens)
    manifest = read_manifest(tokens)
    outcome = tool("verify", tokens, "--workers", "1")
    assert (outcome.code, outcome.err) == (0, "")
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens (uint16), 2 shards"
    assert outcome.out == f"ok: {tokens}: {counts}, every byte checked\n"
    assert tool("verify", tokens, "--quick", "--workers", "1").out == f"ok: {tokens}: {counts}, sizes and indexes checked\n"
    assert contents(tokens) == before


def test_the_hashes_found_are_those_of_the_manifest(tokens: Path) -> None:
    verdict = verify_folder(tokens)
    assert verdict.manifest == read_manifest(tokens)
    assert verdict.sha256 == {entry.name: entry.sha256 for entry in read_manifest(tokens).files}


def test_an_id_outside_the_vocabulary_is_named_with_its_bytes(folder: Path) -> None:
    shard = shards_of(folder)[1]
    overwrite(shard, 2 * 1001, (2000).to_bytes(2, "little"))
    overwrite(shard, 2 * 2000, (65535).to_bytes(2, "little"))
    (fault,) = verify_folder(folder).faults
    assert fault == f"{shard.name} bytes 2002-2003: id 2000 is not below vocab_size 2000; 2 such ids"


def test_one_changed_token_is_found_by_the_hash(tool: Tool, folder: Path) -> None:
    shard = shards_of(folder)[0]
    before = read_manifest(folder).files[0].sha256
    overwrite(shard, 4000, bytes([shard.read_bytes()[4000] ^ 1]))
    outcome = tool("verify", folder, "--workers", "1")
    assert outcome.code == 2
    assert f"fault: {folder}: {shard.name} bytes 0-{shard.stat().st_size - 1}: some byte changed (SHA-256 is " in outcome.err
    assert f"in the manifest {before})" in outcome.err
    assert "error: 1 of 1 folders have faults" in outcome.err
    assert tool("verify", folder, "--quick").code == 0  # by design: no token is read


@pytest.mark.parametrize("quick", [True, False])
def test_files_cut_short_or_grown_or_gone_are_named_with_the_range(folder: Path, quick: bool) -> None:
    first, second = shards_of(folder)
    size, other = first.stat().st_size, second.stat().st_size
    with first.open("r+b") as file:
        file.truncate(size - 10)
    with second.open("ab") as file:
        file.write(b"more")
    index = Path(f"{second}.index")
    index.unlink()
    assert sorted(verify_folder(folder, quick=quick).faults) == [
        f"{first.name} bytes {size - 10}-{size - 1} are missing; copy it again",
        f"{second.name} bytes {other}-{other + 3} are more than the manifest lists; copy it again",
        f"{index.name} is missing; copy it again",
    ]


@pytest.mark.parametrize("quick", [True, False])
def test_document_ends_must_ascend_to_the_last_token(folder: Path, quick: bool) -> None:
    first, second = shards_of(folder)
    overwrite(Path(f"{first}.index"), 8 * 7, (1).to_bytes(8, "little"))
    tokens = second.stat().st_size // 2
    last = np.fromfile(f"{second}.index", dtype="<u8").size - 1
    overwrite(Path(f"{second}.index"), 8 * last, (tokens - 1).to_bytes(8, "little"))
    list_anew(folder)  # the hashes agree: it was written like that
    faults = sorted(verify_folder(folder, quick=quick).faults)
    assert len(faults) == 2
    assert f"{second.name}.index ends at token {tokens - 1}, but {second.name} has {tokens} tokens" in "".join(faults)
    assert f"{first.name}.index bytes 56-63: document 7 ends at token 1, before its start" in "".join(faults)


def test_a_document_that_does_not_end_with_eos_is_a_fault(folder: Path) -> None:
    shard = shards_of(folder)[0]
    end = int(np.fromfile(f"{shard}.index", dtype="<u8")[3])
    overwrite(shard, 2 * (end - 1), (77).to_bytes(2, "little"))
    list_anew(folder)
    (fault,) = verify_folder(folder).faults
    where = f"bytes {2 * end - 2}-{2 * end - 1}"
    assert fault == f"{shard.name} {where}: a document ends with id 77, not with EOS 0; 1 such ends"
    list_anew(folder, eos_id=None, eos_ends_documents=False)
    assert verify_folder(folder).faults == []


def test_eos_inside_a_document_is_a_warning_unless_the_manifest_denies_it(tool: Tool, tmp_path: Path) -> None:
    documents = [*random_documents(0, 50), np.array([5, 0, 6, 0]), *random_documents(1, 50)]
    at = 2 * (sum(map(len, documents[:50])) + 1)
    folder = write_dataset(tmp_path / "a", [documents])
    outcome = tool("verify", folder, "--workers", "1")
    assert outcome.code == 0
    line = f"00000.ds bytes {at}-{at + 1}: EOS 0 inside a document, 1 times"
    assert outcome.err == f"warning: {folder}: {line}\n"
    assert verify_folder(folder).eos_inside == 1
    list_anew(folder, eos_ends_documents=True)
    assert verify_folder(folder).faults == [line]


def test_documents_without_tokens_are_a_warning(tmp_path: Path) -> None:
    empty = np.empty(0, dtype=np.int64)
    folder = write_dataset(tmp_path / "a", [[empty, *random_documents(0, 5), empty, *random_documents(1, 5)]])
    verdict = verify_folder(folder)
    assert (verdict.faults, verdict.warnings) == ([], ["00000.ds.index: 2 documents have no tokens"])


def test_findings_do_not_depend_on_how_files_are_cut_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(0, 300)
    for number in (0, 100, 298):
        documents[number][-1] = 9  # no EOS
    documents[200] = np.array([1, 0, 65000, 1, 0])  # EOS inside, outside the vocabulary
    folder = write_dataset(tmp_path / "a", [documents], vocab_size=2000)
    whole = verify_folder(folder)
    assert (len(whole.faults), len(whole.warnings)) == (2, 1)
    assert "; 3 such ends" in whole.faults[1]
    for block in (16, 34, 1000):
        monkeypatch.setattr(shard_checks, "_BLOCK", block)
        assert verify_folder(folder) == whole


def chunked(folder: Path, chunk: int, chunks: int) -> Path:
    """A folder as an offline chunk shuffle leaves it: cuts at all multiples, most of them not after an EOS."""
    stream = np.concatenate(random_documents(3, 2000))[: chunk * chunks]
    ends = np.union1d(np.flatnonzero(stream == 0) + 1, np.arange(1, chunks + 1) * chunk)
    return write_dataset(folder, [np.split(stream, ends[:-1])], window_tokens=chunk)


def test_chunks_may_end_without_eos_and_their_cuts_must_all_be_there(tmp_path: Path) -> None:
    folder = chunked(tmp_path / "a", chunk=129, chunks=50)
    assert (verify_folder(folder).faults, verify_folder(folder).warnings) == ([], [])
    list_anew(folder, window_tokens=130)
    no_cut, not_eos = sorted(verify_folder(folder).faults, key=len, reverse=True)
    assert no_cut.startswith("00000.ds is not made of chunks of window_tokens=130: no document ends at token 130, ")
    assert "a document ends with id" in not_eos
    list_anew(folder, window_tokens=129 * 50 * 2, eos_id=None)
    (fault,) = verify_folder(folder).faults
    assert "the last chunk is cut short" in fault


def test_files_that_the_manifest_does_not_list_are_a_warning(tool: Tool, folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("x")
    outcome = tool("verify", folder, "--workers", "1")
    assert outcome.code == 0
    assert outcome.err == f"warning: {folder}: notes/a.txt is not listed in the manifest, so nothing is known about it\n"


def test_all_folders_are_looked_at_before_the_command_fails(tool: Tool, tokens: Path, folder: Path, tmp_path: Path) -> None:
    shard = shards_of(folder)[0]
    Path(f"{shard}.metadata").write_text("")
    outcome = tool("verify", tmp_path / "nowhere", folder, tokens, "--workers", "1")
    assert outcome.code == 2
    assert f"ok: {tokens}: " in outcome.out
    lines = outcome.err.splitlines()
    assert lines[0].startswith(f"fault: {tmp_path / 'nowhere'}: ")
    assert "manifest.json cannot be read" in lines[0]
    assert lines[1].startswith(f"fault: {folder}: {shard.name}.metadata bytes 0-")
    assert lines[2] == f"error: 2 of 3 folders have faults: {tmp_path / 'nowhere'}, {folder}; copy or make them again"


def test_what_the_disk_refuses_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shards_of(folder)[0]
    pread, opened = os.pread, Path.open

    def broken_read(descriptor: int, size: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == shard and offset >= 4000:
            raise OSError(5, "Input/output error")
        return pread(descriptor, min(size, 4000), offset)

    def broken_open(path: Path, *how: str, **more: str) -> object:
        if path.suffix == ".metadata":
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *how, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("os.pread", broken_read)
    monkeypatch.setattr("smol_data.open_files._RETRY_SECONDS", ())
    monkeypatch.setattr(Path, "open", broken_open)
    faults = sorted(verify_folder(folder).faults)
    assert len(faults) == 3
    assert f"{shard} cannot be read at byte 0 (Input/output error)" in faults[0]
    assert "Input/output error" in faults[1]
    assert ".ds.metadata" in faults[1]


def test_a_manifest_that_contradicts_itself_is_a_fault(folder: Path) -> None:
    good = read_manifest(folder)
    shard = good.shards[0]
    for changes, sentence in (
        ({"files": good.files[::-1]}, "its files are not sorted by name, each once"),
        ({"files": [entry for entry in good.files if entry not in good.shards], "tokens": 0, "documents": 0}, "lists no shard"),
        (
            {"files": [entry.model_copy(update={"tokens": None}) if entry == shard else entry for entry in good.files]},
            f"{shard.name} has no counts of tokens and documents",
        ),
        (
            {"files": [entry for entry in good.files if entry.name != f"{shard.name}.index"]},
            f"{shard.name}.index, the index of {shard.name}, is not listed",
        ),
        ({"tokens": good.tokens + 1}, f"but its totals are {good.tokens + 1} and {good.documents}"),
        ({"dtype": "uint32"}, "but its counts in the manifest with dtype uint32 need"),
    ):
        good.model_copy(update=changes).write(folder)
        faults = verify_folder(folder).faults
        assert any(sentence in fault for fault in faults), (sentence, faults)


def test_worker_processes_find_the_same(tool: Tool, folder: Path) -> None:
    first, second = shards_of(folder)
    for shard in (first, second):
        overwrite(shard, 100, b"\xff\xff")
    alone, together = verify_folder(folder), verify_folder(folder, workers=2)
    assert len(alone.faults) == 2
    assert (sorted(alone.faults), alone.sha256) == (sorted(together.faults), together.sha256)
    assert stream_of(folder)[0][50] == 65535
