"""Data to a node's own disk: which, from a shared folder, after a kill, after damage, without room."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from staging_parts import NAMES, SIZE, StagingSite, contents, make_dataset
from tiny_runs import QUICKSTART, REPOSITORY, tiny_overrides

from slurm.rehearsal import Rehearsal
from slurm.staging import disk as disk_module
from slurm.staging import sources
from slurm.staging.disk import MARK
from slurm.staging.needs import Needs, find_needs
from smol_config import load, mapping_to_yaml, merge_files
from smol_data.loader import TrainLoader
from smol_train.checkpoint_folder import STATE
from smol_train.config import RunConfig


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagingSite:
    return StagingSite(tmp_path, monkeypatch)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# --- which -------------------------------------------------------------------------------------------------------------------


def needs(site: StagingSite) -> Needs:
    return find_needs(load(RunConfig, site.config), site.run, site.shared)


@pytest.mark.parametrize(
    ("step", "soon", "later", "rest"),
    [
        (0, ["common", "held_out/common", "one", "two"], ["four", "three"], ["tokenizer"]),
        (4, ["common", "held_out/common", "three", "two"], ["four"], ["one", "tokenizer"]),
        (8, ["four", "held_out/common", "three"], [], ["common", "one", "tokenizer", "two"]),
        (15, ["four", "held_out/common"], [], ["common", "one", "three", "tokenizer", "two"]),
        (16, ["held_out/common"], [], ["common", "four", "one", "three", "tokenizer", "two"]),
    ],
)
def test_datasets_of_this_stage_and_the_next_are_needed_soon(
    site: StagingSite, step: int, soon: list[str], later: list[str], rest: list[str]
) -> None:
    if step:
        site.checkpoint(step)
    assert needs(site) == Needs(soon, later, rest, elsewhere=[])


def test_the_checkpoint_before_the_newest_counts_as_well_and_a_damaged_one_does_not(site: StagingSite) -> None:
    site.checkpoint(3)
    site.checkpoint(6)
    found = needs(site)
    assert found.soon == ["common", "held_out/common", "one", "three", "two"], "the newest may turn out to be damaged"
    (site.checkpoint(12) / STATE).write_text("{")
    assert needs(site).soon == ["common", "held_out/common", "three", "two"]


@pytest.mark.parametrize("place", ["other/iter_0000008", "other"])
def test_a_run_that_branches_off_begins_at_its_checkpoints_step(site: StagingSite, place: str) -> None:
    site.checkpoint(8)
    site.run.rename(site.folder / "other")
    text = f"start_from: {{checkpoint: {site.folder / place}, optimizer: true, data_position: true}}\n"
    site.config.write_text(site.config.read_text() + text)
    assert needs(site).soon == ["four", "held_out/common", "three"]


# --- from a folder -----------------------------------------------------------------------------------------------------------


def test_what_is_needed_soon_is_copied_and_the_rest_linked(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.stage() == 0
    assert site.copied() == ["common", "one", "two", "held_out/common"]
    assert site.linked() == ["four", "three", "tokenizer"]
    for name in NAMES:
        assert contents(site.disk / name) == contents(site.shared / name), name
    assert not list(site.disk.rglob("*partial*"))
    assert "n1: 4 datasets (36.0 kB) in " in (told := said(capsys)) and "are to come; 3 links" in told
    assert f"n1: loaded: 12 files from {site.shared}" in told


def test_the_next_stage_takes_the_place_of_its_link(site: StagingSite) -> None:
    assert site.stage() == 0
    site.checkpoint(4)
    assert site.stage() == 0
    assert site.copied() == ["common", "one", "two", "three", "held_out/common"], "what is there stays while there is room"
    assert site.linked() == ["four", "tokenizer"]


def test_what_is_there_is_not_copied_again(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.stage() == 0
    said(capsys)
    monkeypatch.setattr(sources.Folder, "copy", None)
    monkeypatch.setattr(disk_module, "sha256_of_file", None)
    assert site.stage() == 0, "only sizes are compared"
    assert "of which 0 Bytes are to come" in (told := said(capsys)) and "loaded" not in told


def first_batch(config: Path) -> list[int]:
    """Token ids, by the loader that trains."""
    run = load(RunConfig, config)
    loader = TrainLoader(run.data, run.segments, 2, 0, 1, torch.device("cpu"), vocab_size=run.model.vocab_size)
    try:
        return [int(token) for token in next(loader).tokens.flatten()]
    finally:
        loader.close()


def test_the_loader_reads_the_same_from_the_staged_folder(site: StagingSite, corpus: Path) -> None:
    settings = tiny_overrides(Path("${DATA_ROOT}"), site.run)
    site.config.write_text(mapping_to_yaml(merge_files(QUICKSTART, settings)))
    site.set(DATA_ROOT=corpus)
    expected = first_batch(site.config)
    assert site.stage() == 0
    assert site.linked() == ["tokenizer"] and (site.disk / "tokens" / "held_out" / "code" / MARK).exists()
    site.set(DATA_ROOT=site.disk)
    assert first_batch(site.config) == expected


# --- killed, damaged ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from slurm.staging import sources
from slurm.staging.__main__ import main

reads, reading, sources.BLOCK = [], sources._reading, 10_000

def count(path):
    reads.append(path)
    if len(reads) > 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return reading(path)

sources._reading = count
main(sys.argv[1:])
"""
"""Staging that is killed when it has read 300 kB or so."""


def test_a_killed_copy_goes_on_where_it_stopped(site: StagingSite) -> None:
    for name in NAMES:
        shutil.rmtree(site.shared / name)
        make_dataset(site.shared / name, size=100_000)
    expected = {name: contents(site.shared / name) for name in NAMES}
    killed = subprocess.run([sys.executable, "-c", KILLED, *site.arguments()], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    begun = [path for path in site.disk.rglob(".partial/*") if path.stat().st_size]
    assert begun and site.copied() == []
    for path in begun:  # what has come is not read again: the source has lost it
        name = path.relative_to(site.disk).parent.parent / path.name
        content, come = (site.shared / name).read_bytes(), path.stat().st_size
        (site.shared / name).write_bytes(bytes(come) + content[come:])
    assert site.stage() == 0
    assert {name: contents(site.disk / name) for name in site.copied()} == {name: expected[name] for name in site.copied()}
    assert len(site.copied()) == 4 and not list(site.disk.rglob("*partial*"))


def test_a_file_of_another_size_is_fetched_again_and_one_of_other_bytes_when_all_are_read(
    site: StagingSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.stage() == 0
    expected = contents(site.disk / "one")
    (site.disk / "one" / "1.ds").write_bytes(b"short")
    assert site.stage() == 0
    assert contents(site.disk / "one") == expected and f"loaded: 1 files from {site.shared}" in said(capsys)
    (site.disk / "one" / "2.ds").write_bytes(bytes(SIZE))
    assert site.stage() == 0 and contents(site.disk / "one") != expected
    assert site.stage("--verify") == 0
    assert contents(site.disk / "one") == expected and f"loaded: 1 files from {site.shared}" in said(capsys)


def test_a_folder_that_others_put_there_is_read_once_and_kept(site: StagingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(site.shared / "one", site.disk / "one")
    (site.disk / "one" / "0.ds").write_bytes(bytes(SIZE))
    assert site.stage() == 0
    assert contents(site.disk / "one") == contents(site.shared / "one")
    site.checkpoint(8)
    monkeypatch.setattr(disk_module, "free_bytes", lambda root: SIZE)
    assert site.stage() == 0
    assert site.copied() == ["one", "three", "four", "held_out/common"], "only what staging made is removed for want of room"


def test_a_dataset_that_was_made_anew_is_fetched_anew(site: StagingSite) -> None:
    assert site.stage() == 0
    shutil.rmtree(site.shared / "one")
    random_files(site.shared / "one")
    assert site.stage() == 0
    assert contents(site.disk / "one") == contents(site.shared / "one")


def random_files(folder: Path) -> None:
    """As many bytes as before, and other ones."""
    make_dataset(folder.with_name("other"))
    folder.with_name("other").rename(folder)


# --- room --------------------------------------------------------------------------------------------------------------------


def test_without_room_nothing_is_written(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk_module, "free_bytes", lambda root: 20_000)
    assert site.stage() == 93
    assert (
        f"n1: error: {site.disk} has room for 20.0 kB, but common, held_out/common, one, two need 36.7 kB more; free space "
        f"there, or name a larger disk in SMOL_LOCAL_DATA\n"
    ) in said(capsys)
    assert [path.name for path in site.disk.iterdir()] == [".lock"]


def test_for_want_of_room_the_oldest_that_is_not_needed_soon_goes(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.stage() == 0
    site.checkpoint(4)
    assert site.stage() == 0
    site.checkpoint(12)  # beside that of step 4: "two" and "three" may be read again
    monkeypatch.setattr(disk_module, "free_bytes", lambda root: 3 * SIZE)
    assert site.stage() == 0
    assert "removed one, which is not needed soon, for want of room" in said(capsys)
    assert site.copied() == ["common", "two", "three", "four", "held_out/common"]
    assert "one" in site.linked(), "a run that goes back may still read it"


# --- who else goes by DATA_ROOT ----------------------------------------------------------------------------------------------


def test_a_rehearsal_leaves_data_root_to_its_ranks(site: StagingSite) -> None:
    rehearsal = Rehearsal(load(RunConfig, site.config), [])
    rehearsal.prepare()
    site.set(DATA_ROOT=site.disk)
    data = load(RunConfig, rehearsal.short).data
    assert data.datasets["one"] == f"{site.disk}/one" and data.tokenizer == f"{site.disk}/tokenizer"
