"""Checkpoints as folders: whole or not there, kept and removed by rule, damage found, the newest good one chosen."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from save_jobs import note_upload

from smol_train.checkpoint_folder import (
    MARKER,
    PIN,
    CheckpointError,
    TrainState,
    folder_name,
    listing_text,
    note_path,
    read_listing,
    remove_old,
    remove_partial,
    set_aside,
    step_of,
    whole_checkpoints,
)
from smol_train.checkpoint_integrity import describe, find, newest_good


def make_run(run: Path, steps: list[int]) -> None:
    """Checkpoints of two files each, listed by their markers."""
    for step in steps:
        folder = run / folder_name(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps(asdict(TrainState(step=step))))
        for name in ("__0_0.distcp", "common.pt"):
            (folder / name).write_bytes(f"{name} of step {step}".encode())
        files = {name: describe(folder / name) for name in ("__0_0.distcp", "common.pt")}
        (folder / MARKER).write_text(listing_text(step, files))


def kept(run: Path) -> list[int]:
    return [step_of(path) for path in whole_checkpoints(run)]


# --- which stay --------------------------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_milestones_and_pinned_ones_for_good(tmp_path: Path) -> None:
    make_run(tmp_path, [50, 100, 200, 250, 300, 350])
    (tmp_path / "iter_0000100" / PIN).touch()
    removed = remove_old(tmp_path, tmp_path / "iter_0000350", keep_last=2, keep_every_steps=200)
    assert kept(tmp_path) == [100, 200, 300, 350]
    assert [path.name for path in removed] == ["iter_0000050", "iter_0000250"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder_name(step) for step in (100, 200, 300, 350)]


def test_with_uploads_none_goes_before_it_has_arrived_as_it_is_now(tmp_path: Path) -> None:
    make_run(tmp_path, [1, 2, 3, 4, 5, 6])
    for step in (1, 2, 3, 6):
        note_upload(tmp_path / folder_name(step))
    make_run(tmp_path, [2])  # saved again by a run that was rolled back: another one
    (tmp_path / "iter_0000002" / MARKER).write_text(listing_text(2, {}))
    (tmp_path / "iter_0000003" / "state.json").write_text(json.dumps(asdict(TrainState(step=3, rollbacks=1))))
    note_path(tmp_path, 4).write_text('{"checkpoint": ')
    remove_old(tmp_path, tmp_path / "iter_0000006", keep_last=1, keep_every_steps=None, only_uploaded=True)
    assert kept(tmp_path) == [2, 3, 4, 5, 6]
    for step in (2, 3, 4):
        note_upload(tmp_path / folder_name(step))
    remove_old(tmp_path, tmp_path / "iter_0000006", keep_last=1, keep_every_steps=4, only_uploaded=True)
    assert kept(tmp_path) == [4, 5, 6], "5 has not arrived, 4 is a milestone"


def test_a_checkpoint_of_a_later_step_does_not_push_out_the_one_just_saved(tmp_path: Path) -> None:
    make_run(tmp_path, [4, 6, 8])  # 8 is of a lost attempt
    remove_old(tmp_path, tmp_path / "iter_0000006", keep_last=1, keep_every_steps=None)
    assert kept(tmp_path) == [6, 8]


def test_a_folder_without_its_marker_does_not_count_and_is_not_touched(tmp_path: Path) -> None:
    make_run(tmp_path, [1, 2, 3])
    (tmp_path / "iter_0000003" / MARKER).unlink()
    assert find(tmp_path).name == "iter_0000002"
    remove_old(tmp_path, tmp_path / "iter_0000002", keep_last=1, keep_every_steps=None)
    assert kept(tmp_path) == [2]
    assert (tmp_path / "iter_0000003").exists()


def test_what_killed_saves_left_goes_and_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path, [1, 2])
    set_aside(tmp_path / "iter_0000002", "partial")
    (tmp_path / "iter_0000003").mkdir()  # no marker, but nobody's temporary folder either
    assert [path.name for path in remove_partial(tmp_path)] == ["iter_0000002.partial"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", "iter_0000003"]


def test_a_damaged_one_stays_until_a_checkpoint_of_its_step_or_later_is_whole(tmp_path: Path) -> None:
    make_run(tmp_path, [2, 4, 6])
    set_aside(tmp_path / "iter_0000004", "damaged")
    assert kept(tmp_path) == [2, 6]
    remove_old(tmp_path, tmp_path / "iter_0000002", keep_last=1, keep_every_steps=None)
    assert (tmp_path / "iter_0000004.damaged").exists()
    remove_old(tmp_path, tmp_path / "iter_0000006", keep_last=1, keep_every_steps=None)
    assert not (tmp_path / "iter_0000004.damaged").exists()


# --- which are good ----------------------------------------------------------------------------------------------------------


def shorten(folder: Path) -> None:
    (folder / "common.pt").write_bytes((folder / "common.pt").read_bytes()[:-3])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[5] ^= 4
    (folder / "__0_0.distcp").write_bytes(content)


DAMAGE = {
    "shorter": (shorten, "common.pt has 16 bytes instead of 19"),
    "one bit": (flip_a_bit, "__0_0.distcp has another SHA-256 than when it was saved"),
    "gone": (lambda folder: (folder / "common.pt").unlink(), "common.pt cannot be read: No such file"),
    "state cut": (lambda folder: (folder / "state.json").write_text('{"step": 3'), "JSONDecodeError"),
    "marker cut": (lambda folder: (folder / MARKER).write_text('{"step": 3, "fi'), "JSONDecodeError"),
    "marker of something else": (lambda folder: (folder / MARKER).write_text('{"step": 3}'), "COMPLETE lists no files"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(name: str, tmp_path: Path) -> None:
    damage, what = DAMAGE[name]
    make_run(tmp_path, [1, 2, 3])
    damage(tmp_path / "iter_0000003")
    told: list[tuple[str, str]] = []
    good = newest_good(tmp_path, "hashes", damaged=lambda folder, fault: told.append((folder.name, fault)))
    assert good == tmp_path / "iter_0000002"
    [(passed_over, fault)] = told
    assert passed_over == "iter_0000003" and what in fault
    assert find(tmp_path).name == "iter_0000002"
    with pytest.raises(CheckpointError, match=r"iter_0000003 is damaged .*; use another one"):
        find(tmp_path / "iter_0000003")


def test_sizes_alone_see_a_cut_file_and_no_changed_one(tmp_path: Path) -> None:
    make_run(tmp_path, [1, 2, 3])
    flip_a_bit(tmp_path / "iter_0000003")
    assert newest_good(tmp_path, "sizes") == tmp_path / "iter_0000003"
    shorten(tmp_path / "iter_0000003")
    assert newest_good(tmp_path, "sizes") == tmp_path / "iter_0000002"


def test_the_newest_good_one_before_a_step(tmp_path: Path) -> None:
    make_run(tmp_path, [2, 4, 6])
    assert newest_good(tmp_path, before=6) == tmp_path / "iter_0000004"
    assert newest_good(tmp_path, before=5) == tmp_path / "iter_0000004"
    shorten(tmp_path / "iter_0000004")
    assert newest_good(tmp_path, before=6) == tmp_path / "iter_0000002"
    assert newest_good(tmp_path, before=2) is None


def test_a_run_with_nothing_but_damaged_checkpoints_does_not_start_over(tmp_path: Path) -> None:
    make_run(tmp_path, [1, 2])
    for step in (1, 2):
        shorten(tmp_path / folder_name(step))
    with pytest.raises(CheckpointError, match=r"all whole checkpoints of .* are damaged \(iter_0000001, iter_0000002\); move"):
        newest_good(tmp_path)


@pytest.mark.parametrize("marker", ["", "1000\n"], ids=["empty", "a number"])
def test_checkpoints_from_before_the_listing_are_used_unchecked(
    marker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, [1])
    folder = tmp_path / "iter_0000001"
    (folder / MARKER).write_text(marker)
    assert read_listing(folder) is None
    with caplog.at_level(logging.INFO):
        assert find(folder) == folder
    assert "saved before sizes and hashes were listed: used unchecked" in caplog.text


def test_finding_nothing_says_what_to_give(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        find(tmp_path)
    (tmp_path / "iter_0000007").mkdir()
    with pytest.raises(CheckpointError, match="has no COMPLETE marker, so its save did not finish"):
        find(tmp_path / "iter_0000007")
