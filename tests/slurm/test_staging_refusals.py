"""Data to a node's own disk, when it cannot be: what is refused and said, and what may pass and is waited for."""

import errno
import fcntl
from collections import Counter
from pathlib import Path

import pytest
from staging_parts import SIZE, StagingSite

from slurm.staging import sources
from slurm.staging.peers import Step
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagingSite:
    return StagingSite(tmp_path, monkeypatch)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# --- what is refused ---------------------------------------------------------------------------------------------------------


def test_without_a_disk_there_is_nothing_to_do(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    site.set(SMOL_LOCAL_DATA="")
    assert site.stage() == 0
    assert said(capsys) == "n1: SMOL_LOCAL_DATA is empty: data is read where it is\n"


SETTINGS = {
    "no root": ({"DATA_ROOT": ""}, "DATA_ROOT is not set; slurm/env.sh.example says what it is"),
    "no source": ({"SMOL_DATA_SOURCE": "{folder}/none"}, "SMOL_DATA_SOURCE={folder}/none is no folder here; give one that all"),
    "onto itself": (
        {"SMOL_LOCAL_DATA": "{folder}/shared"},
        "SMOL_LOCAL_DATA={folder}/shared is where the data comes from; name",
    ),
    "no folder": (
        {"SMOL_LOCAL_DATA": "{folder}/config.yaml/disk"},
        "Not a directory; mend that, or name another disk in SMOL_",
    ),
    "a file": (
        {"SMOL_LOCAL_DATA": "{folder}/config.yaml"},
        "{folder}/config.yaml: File exists; mend that, or name another disk",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_are_refused(case: str, site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    settings, sentence = SETTINGS[case]
    site.set(**{name: value.format(folder=site.folder) for name, value in settings.items()})
    assert site.stage() == 93
    assert "n1: error: " in (told := said(capsys)) and sentence.format(folder=site.folder) in told
    assert told.count("\n") == 1


def test_datasets_inside_each_other_are_refused(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    site.configure({"three": "${DATA_ROOT}/one/three"})
    assert site.stage() == 93
    assert "below DATA_ROOT, one/three lies inside one; give each a folder of its own" in said(capsys)


def test_datasets_elsewhere_are_left_there(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    site.configure({"one": "/elsewhere/one"})
    assert site.stage() == 0
    assert "n1: not below DATA_ROOT, and so not loaded: /elsewhere/one\n" in said(capsys)
    assert site.copied() == ["common", "two", "held_out/common"]


def test_a_source_without_the_dataset_is_refused(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    (site.shared / "two" / "1.ds").unlink()
    assert site.stage() == 93
    sentence = "1.ds cannot be read (No such file or directory); mend SMOL_DATA_SOURCE, or put the dataset there"
    assert f"n1: error: {site.shared}/two/{sentence}" in said(capsys)
    (site.shared / "one" / MANIFEST_NAME).unlink()
    assert site.stage() == 93
    assert f"{site.shared}/one/manifest.json cannot be read (No such file or directory)" in said(capsys)


def test_a_source_that_holds_other_bytes_is_refused(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    (site.shared / "two" / "1.ds").write_bytes(bytes(SIZE))
    assert site.stage() == 93
    assert f"n1: error: {site.shared}/two/1.ds is not what its manifest says ({SIZE} bytes with SHA-256 " in said(capsys)
    assert "two" not in site.copied() and not (site.disk / "two" / "1.ds").exists()


def test_a_damaged_manifest_is_refused(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    (site.shared / "two" / MANIFEST_NAME).write_text("{}")
    assert site.stage() == 93
    assert f"n1: error: {site.shared}/two/manifest.json is damaged: " in said(capsys)


def test_a_disk_that_is_full_all_the_same_is_refused(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: sources.Folder, name: str, entry: FileEntry, partial: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources.Folder, "copy", full)
    assert site.stage() == 93
    assert f"n1: error: {site.disk}: No space left on device; mend that, or name another disk in SMOL_LOCAL_DATA" in said(
        capsys
    )


def test_an_error_of_the_disk_that_may_pass_is_a_crash(site: StagingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: sources.Folder, name: str, entry: FileEntry, partial: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sources.Folder, "copy", broken)
    with pytest.raises(OSError, match="Input/output"):
        site.stage()


# --- what may pass -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_answer_is_waited_for(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, tries = sources.Folder.copy, Counter[str]()

    def stale(self: sources.Folder, name: str, entry: FileEntry, partial: Path) -> None:
        tries[f"{name}/{entry.name}"] += 1
        with sources._reading(self.root / name / entry.name):
            if tries[f"{name}/{entry.name}"] <= patience:
                raise OSError(errno.ESTALE, "Stale file handle")
        copy(self, name, entry, partial)

    monkeypatch.setattr(sources.Folder, "copy", stale)
    monkeypatch.setattr(sources, "DELAYS", (0.01, 0.02))
    patience = 3
    assert site.stage() == 85
    told = said(capsys)
    assert ".ds cannot be read (Stale file handle); next attempt in 0 s" in told
    assert "cannot be read (Stale file handle); giving up for now, to be started again" in told
    tries.clear()
    patience = 2
    assert site.stage() == 0 and len(site.copied()) == 4


def test_without_the_sources_manifest_that_of_the_copy_will_do(
    site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.stage() == 0

    def silent(self: sources.Folder, name: str) -> Manifest:
        raise sources.Silent(f"{name} cannot be read")

    monkeypatch.setattr(sources.Folder, "manifest", silent)
    monkeypatch.setattr(sources, "DELAYS", ())
    assert site.stage() == 0
    assert "n1: one cannot be read; going by the copy of one that is here" in said(capsys)
    site.checkpoint(8)
    assert site.stage() == 85, "three and four are not there"


def test_two_jobs_do_not_load_a_node_at_once(site: StagingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.disk.mkdir(parents=True)
    waited: list[str] = []

    def say(self: Step, sentence: str) -> None:
        if "another job" in sentence:
            waited.extend([sentence, *site.copied()])
            fcntl.flock(lock, fcntl.LOCK_UN)
        else:
            with pytest.raises(BlockingIOError):  # now the node is this one's
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(Step, "say", say)
    with (site.disk / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert site.stage() == 0
    assert waited == [f"another job loads {site.disk}: waiting for it"] and len(site.copied()) == 4
