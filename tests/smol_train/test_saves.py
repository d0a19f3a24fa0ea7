"""Saves that fail, or are torn, or killed: training goes on, what is whole is whole, the rest is told and removed."""

from pathlib import Path

import jobs
import pytest
import save_jobs
from ranks import Ranks

from smol_train.checkpoint_folder import folder_name, read_listing


@pytest.mark.parametrize("background", ["false", "true"], ids=["foreground", "background"])
def test_training_goes_on_when_the_disk_is_full_or_read_only(
    background: str, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    settings = ["checkpoint.every_steps=1", "checkpoint.keep_last=2", f"checkpoint.async_save={background}"]
    try:
        with save_jobs.small_disk(tmp_path / "disk", mebibytes=24) as disk:
            settings.append(f"train.output_dir={disk / 'run'}")
            main, other = ranks.run(
                save_jobs.train_on_a_bad_disk, 2, overrides=[*overrides, *settings], disk=disk, record=tmp_path / "record"
            )
    except PermissionError as reason:
        pytest.skip(str(reason))
    assert (main["step"], main["left"], main["saved_step"]) == (10, ["iter_0000008", "iter_0000009"], 9)
    assert main["code"] == other["code"] == 85, "a run whose end is not saved is not done"
    assert [(event, text.split(" ")[1].rpartition("/")[2]) for event, text in main["alerts"] if "checkpoint" in text[:10]] == [
        ("disk_low", "iter_0000002"),
        ("save_failed", "iter_0000003"),
        ("save_failed", "iter_0000005"),
        ("save_failed", "iter_0000010"),
    ]
    texts = [text for _, text in main["alerts"]]
    assert "GB are free; make room" in texts[1]
    assert "No space left on device" in texts[2] and "No space left on device" in texts[4]
    assert "Read-only file system" in texts[3]
    assert "step 10 is NOT saved" in texts[5] and "goes on from step 9 and trains 1 again" in texts[5]
    assert main["alerts"][6] == ("stopped", "at step 10 of 10, saved up to step 9 only; exit code 85")
    assert len(texts) == 7
    assert [line["step"] for line in main["lines"]] == list(range(1, 11)), "lines that had no room are written later"
    paused = [line["step"] for line in main["lines"] if "perf/checkpoint_pause_seconds" in line]
    assert paused == [2, 5, 7, 8, 9, 10] if background == "false" else paused[0] in (2, 3), "in the line after a save"
    costs = next(line for line in main["lines"] if "checkpoint/bytes" in line)
    assert costs["checkpoint/bytes"] > 1e6 and costs["checkpoint/write_seconds"] > 0


def tensor_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the files with tensors: weights and the optimizer's states, every bit."""
    listing = read_listing(folder)
    assert listing
    return {name: file.sha256 for name, file in listing.items() if name.endswith(".distcp")}


@pytest.mark.parametrize("optimizer", ["adamw", "ademamix"])
def test_steps_that_follow_do_not_tear_what_is_written_in_the_background(
    optimizer: str, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    """The distributed optimizer's tensors are copied when they are planned; the others' are written as they stand."""
    settings = [*overrides, "train.precision=bf16", "parallel.overlap=true", f"optim.optimizer={optimizer}"]
    settings += ["checkpoint.every_steps=2", "checkpoint.keep_last=9"]
    ranks.run(jobs.train, 2, overrides=[*settings, f"train.output_dir={tmp_path / 'at_once'}"], save=True)
    settings.append("checkpoint.async_save=true")
    held_up = ranks.run(save_jobs.train_with_held_up_writers, 2, overrides=settings, held=6, until=8)
    assert held_up == [[7, 8], [7, 8]], "two steps were done while the files of step 6 had not been begun"
    for step in (2, 4, 6, 8, 10):
        stored = tensor_files(tmp_path / "run" / folder_name(step))
        assert len(stored) == 4
        assert stored == tensor_files(tmp_path / "at_once" / folder_name(step)), step


def test_a_killed_writer_costs_its_checkpoint_and_nothing_else(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "checkpoint.every_steps=2", "checkpoint.keep_last=9", "checkpoint.async_save=true"]
    for rank in ranks.run(save_jobs.train_with_a_killed_writer, 2, overrides=settings, killed_after=4):
        assert (rank["code"], rank["whole"]) == (0, [2, 6, 8, 10])
        [told] = rank["told"]
        assert told.startswith("save_failed: ") and "rank 1: __1_0.distcp: its writer ended with exit code -9" in told
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_taken(
    ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*overrides, "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    [whole, _] = ranks.run(jobs.train, 2, overrides=settings, save=True)
    for name in ("iter_0000010", "iter_0000006"):
        content = bytearray((run / name / "__1_0.distcp").read_bytes())
        content[-100] ^= 1
        (run / name / "__1_0.distcp").write_bytes(content)
    found = ranks.run(save_jobs.newest_good_of, 2, run=run)
    fault = "__1_0.distcp has another SHA-256 than when it was saved"
    assert found == [("iter_0000008", [f"iter_0000010: {fault}"])] * 2, "one rank's file, the same word on all"
    [again, other] = ranks.run(save_jobs.train_and_tell, 2, overrides=settings, record=tmp_path)
    assert again["start"] == 8 and again["loss"] == whole["loss"][8:]
    assert again["told"][0][0] == "damaged_checkpoint" and f"iter_0000010 is damaged ({fault})" in again["told"][0][1]
    assert [event for event, _ in again["told"]] == ["damaged_checkpoint", "resumed", "done"] and other["told"] == []
    assert not (run / "iter_0000010.damaged").exists(), "a whole one of its step is there again"
    assert found != ranks.run(save_jobs.newest_good_of, 2, run=run)


def test_a_clock_that_goes_back_delays_no_save(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = ["checkpoint.every_minutes=0.0001", "checkpoint.keep_last=99", "data.stages.0.steps=3", "data.stages.1.steps=4"]
    [saved] = ranks.run(save_jobs.train_while_the_clock_goes_back, 1, overrides=[*overrides, *settings])
    assert saved == [folder_name(step) for step in range(1, 8)], "six milliseconds are over after each step"


def test_what_has_not_been_uploaded_stays_until_the_disk_is_full_and_goes_when_it_has_arrived(
    ranks: Ranks, overrides: list[str]
) -> None:
    settings = [*overrides, "checkpoint.every_steps=1", "checkpoint.keep_last=1", "checkpoint.upload=s3://bucket/runs"]
    [run] = ranks.run(save_jobs.train_while_uploads_lag, 1, overrides=settings, uploads={3: [1], 6: [2, 3], 8: [6, 7]}, fits=4)
    assert run["kept"] == {
        1: [1],
        2: [1, 2],
        3: [2, 3],  # the first has arrived
        4: [2, 3, 4],
        5: [2, 3, 4, 5],
        6: [4, 5, 6],  # no room, until it was seen that two have arrived
        7: [4, 5, 6, 7],
        8: [4, 5, 8],
        9: [4, 5, 8, 9],
        10: [4, 5, 8, 9],
    }
    [full, *_] = [text for text in run["told"] if text.startswith("disk_low: ")]
    assert "iter_0000010 is not saved" in full
    assert "make room, or look at the upload job: 4 checkpoints are kept until they are uploaded" in full
