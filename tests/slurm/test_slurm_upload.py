"""Checkpoints to S3 beside the run, by the real s5cmd, and back: once, in order, noted when they have arrived."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jobs
import psutil
import pytest
from ranks import Ranks
from s3_double import S3Double, s3_double
from tiny_runs import QUICKSTART, REPOSITORY

from conversion import ConversionError, Unreachable
from conversion.upload import download, flow, s5cmd
from conversion.upload.fsspec_files import FsspecFiles
from conversion.watching import sole_worker
from slurm import upload
from smol_train.checkpoint_folder import (
    MARKER,
    PIN,
    STATE,
    TrainState,
    folder_name,
    listing_text,
    note_of,
    note_path,
    set_aside,
    state_text,
    step_of,
    whole_checkpoints,
)
from smol_train.checkpoint_integrity import describe, find

TARGET = "s3://bucket/runs"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


@pytest.fixture
def s3(server: S3Double, monkeypatch: pytest.MonkeyPatch) -> S3Double:
    """An S3 with one empty bucket, and an uploader that does not wait."""
    server.start_afresh()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    subprocess.run([s5cmd.find_program(), "mb", "s3://bucket"], check=True, capture_output=True)
    server.reset()
    monkeypatch.setattr(s5cmd, "RETRIES", 0)
    monkeypatch.setattr(flow, "DELAYS", (0.01,))
    monkeypatch.setattr(download, "DELAYS", (0.01,))
    return server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 5 and 10."""
    folder = tmp_path / "run"
    for step in (5, 10):
        save(folder, step)
    return folder


def save(run: Path, step: int, content: str = "") -> Path:
    """A checkpoint of two small files."""
    folder = run / folder_name(step)
    folder.mkdir(parents=True)
    (folder / STATE).write_text(state_text(TrainState(step=step)))
    for name in (".metadata", "__0_0.distcp"):
        (folder / name).write_text(f"{name} of step {step} {content}")
    listing = {name: describe(folder / name) for name in (".metadata", "__0_0.distcp")}
    (folder / MARKER).write_text(listing_text(step, listing))
    return folder


def tell(run: Path, event: str) -> None:
    (run / "alerts.jsonl").write_text(json.dumps({"event": event}) + "\n")


def arguments(run: Path, *options: str, target: str = TARGET) -> list[str]:
    return [str(QUICKSTART), *options, f"train.output_dir={run}", f"checkpoint.upload={target}"]


def noted(run: Path) -> list[int]:
    return [step_of(path) for path in whole_checkpoints(run) if note_of(path)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- there -------------------------------------------------------------------------------------------------------------------


def test_every_checkpoint_is_sent_once_oldest_first_and_noted_when_it_has_arrived(
    s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "iter_0000005" / PIN).touch()
    (run / "iter_0000015.partial").mkdir()  # being saved
    assert upload.main(arguments(run)) == 0
    assert noted(run) == [5, 10]
    sent = [key.removeprefix("/bucket/runs/run/") for key in s3.arrived]
    assert [sent.index(f"iter_{step:07d}/upload.json") for step in (5, 10)] == [len(sent) // 2 - 1, len(sent) - 1]
    assert f"iter_0000005/{PIN}" not in sent and "iter_0000005/.metadata" in sent
    note = json.loads(note_path(run, 5).read_text())
    assert note["target"] == f"{TARGET}/run/iter_0000005"
    assert note["bytes"] == sum(path.stat().st_size for path in (run / "iter_0000005").iterdir())
    s3.reset()
    assert upload.main(arguments(run)) == 0
    assert s3.arrived == [] and "all checkpoints are uploaded" in capsys.readouterr().out
    assert upload.main(arguments(run, target=f"{TARGET}/elsewhere")) == 0
    assert len(s3.arrived) == len(sent), "another place has them not"


def test_it_ends_when_the_run_is_done_and_takes_what_came_meanwhile(
    s3: S3Double, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = upload.whole_checkpoints

    def look_and_save(folder: Path) -> list[Path]:
        found = look(folder)
        if not (folder / folder_name(15)).exists():
            save(folder, 15)
            tell(folder, "done")
        return found

    monkeypatch.setattr(upload, "whole_checkpoints", look_and_save)
    assert upload.main(arguments(run, "--watch", "--every", "0.01")) == 0
    assert noted(run) == [5, 10, 15]


def test_an_s3_that_answers_503_for_a_while_is_waited_for(s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(run, "done")
    s3.faults = {"iter_0000005/__0_0": [503] * 5}
    assert upload.main(arguments(run, "--watch", "--every", "0.01")) == 0
    out = capsys.readouterr().out
    assert out.count("iter_0000005 is not uploaded: s3://bucket/runs/run/iter_0000005 cannot be reached (SlowDown") == 2
    assert "; tried again in " in out and noted(run) == [5, 10]
    s3.faults = {"iter_0000015": [503] * 100}
    save(run, 15)
    assert upload.main(arguments(run)) == 2, "without --watch it tells what is left"
    assert noted(run) == [5, 10]


def test_a_target_that_cannot_be_used_is_refused_at_once_and_one_out_of_reach_is_not(
    s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload.main(arguments(run, "--watch", target="s3://nowhere/runs")) == 2
    assert "error: s3://nowhere/runs/run: there is no bucket nowhere; make it" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert upload.main(arguments(run, "--watch", target="gcsx://bucket/runs")) == 93, "a job is not started again for it"
    assert "fsspec knows no gcsx://" in capsys.readouterr().err
    assert upload.main([str(QUICKSTART), f"train.output_dir={run}"]) == 93
    assert "checkpoint.upload is not set; set it to a URL" in capsys.readouterr().err
    assert upload.main(arguments(run, target="bucket/runs")) == 93
    assert "checkpoint.upload=bucket/runs is no URL of a folder; write one such as s3:" in capsys.readouterr().err
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    assert upload.main(arguments(run)) == 93
    captured = capsys.readouterr()
    assert "cannot be reached" in captured.out and "; going on, since that may pass" in captured.out
    assert "1 not uploaded: " in captured.err and noted(run) == []


def test_a_killed_uploader_goes_on_where_it_stopped(s3: S3Double, run: Path) -> None:
    s3.faults = {"iter_0000010/__0_0": [0]}
    command = [sys.executable, "-m", "slurm.upload", *arguments(run, "--watch")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert s3.held.wait(100), process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    assert {child.nice() for child in children} == {19}, "it gives way to training"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    s3.released.set()
    assert noted(run) == [5]
    assert upload.main(arguments(run)) == 0
    assert noted(run) == [5, 10]
    finished = [key for key in s3.arrived if "iter_0000005" in key and "upload.partial" not in key]
    assert len(finished) == len(set(finished)) == 5, "what had arrived is not sent again"


def test_a_run_has_one_uploader(s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_worker(run / "uploads" / "lock", "an uploader"):
        assert upload.main(arguments(run)) == 2
    assert f"{run / 'uploads'} has an uploader already, process " in capsys.readouterr().err


def end_after(moment: str, run: Path) -> None:
    """What a trainer does to the checkpoint of step 5 while it is being uploaded."""
    folder = run / "iter_0000005"
    if moment == "removed":
        set_aside(folder, "partial")
    elif moment == "set aside":
        set_aside(folder, "damaged")
    elif moment == "saved again":
        set_aside(folder, "replaced")
        save(run, 5, "again")
    else:
        (folder / STATE).write_text(state_text(TrainState(step=5, rollbacks=1)))


@pytest.mark.parametrize("moment", ["removed", "set aside", "saved again", "rolled back to"])
def test_a_checkpoint_that_changes_meanwhile_harms_nothing(
    moment: str, s3: S3Double, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send, mark = s5cmd.S5cmd.send, run / "mark"

    def send_and_end(store: s5cmd.S5cmd, files: list[object]) -> None:
        if not mark.exists():
            mark.touch()
            end_after(moment, run)
        send(store, files)  # type: ignore[arg-type]

    monkeypatch.setattr(s5cmd.S5cmd, "send", send_and_end)
    assert upload.main(arguments(run)) == 0, capsys.readouterr().err
    assert "iter_0000005 was removed, set aside or saved again while it was uploaded; going on" in capsys.readouterr().out
    assert noted(run) == [10] and (run / "iter_0000010").exists()
    assert upload.main(arguments(run)) == 0
    assert noted(run) == ([10] if moment in ("removed", "set aside") else [5, 10])
    if 5 in noted(run):
        expected = contents(run / "iter_0000005")
        set_aside(run / "iter_0000005", "damaged")
        assert upload.main(arguments(run, "--restore", "5")) == 0
        assert contents(run / "iter_0000005") == expected, "what arrived is the newer one"


def test_a_damaged_checkpoint_is_not_sent_and_the_others_are(
    s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "iter_0000005" / "__0_0.distcp").write_text("!")
    tell(run, "done")
    assert upload.main(arguments(run, "--watch", "--every", "0.01")) == 2
    captured = capsys.readouterr()
    assert captured.out.count("iter_0000005 is NOT uploaded: ") == 1
    assert "1 not uploaded: " in captured.err and "is damaged (__0_0.distcp: not as it was saved); the trainer" in captured.err
    assert noted(run) == [10] and not any("iter_0000005" in key for key in s3.arrived)
    (run / "iter_0000005" / MARKER).write_text('{"step": 5}')
    assert upload.main(arguments(run)) == 2
    assert "is damaged (COMPLETE lists no files)" in capsys.readouterr().err


def test_a_note_that_cannot_be_written_is_written_later(
    s3: S3Double, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, tries = upload._write_note, []

    def full_at_first(*note: object) -> None:
        tries.append(note)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        write(*note)  # type: ignore[arg-type]

    monkeypatch.setattr(upload, "_write_note", full_at_first)
    tell(run, "done")
    assert upload.main(arguments(run, "--watch", "--every", "0.01")) == 0
    assert "No space left on device; tried again in" in capsys.readouterr().out and noted(run) == [5, 10]


def test_asked_to_stop_it_ends_in_the_middle(s3: S3Double, run: Path) -> None:
    s3.faults = {"iter_0000005/__0_0": [0]}
    command = [sys.executable, "-m", "slurm.upload", *arguments(run, "--watch")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert s3.held.wait(100), process.communicate()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("stopped\n"), err
    assert noted(run) == []
    s3.released.set()


def test_it_waits_for_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, target = tmp_path / "run", f"file://{tmp_path}/kept"

    def make_it(seconds: float, stop: object) -> None:
        save(run, 5)
        tell(run, "done")

    assert upload.main(arguments(run, target=target)) == 0 and not run.exists(), "nothing to upload, without --watch"
    monkeypatch.setattr("conversion.watching.pause", make_it)
    assert upload.main(arguments(run, "--watch", target=target)) == 0
    assert noted(run) == [5]


# --- and back ----------------------------------------------------------------------------------------------------------------


def test_what_comes_back_is_what_was_there_and_the_newest_unless_another_is_named(
    s3: S3Double, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upload.main(arguments(run)) == 0
    s3.faults = {"iter_0000015/upload.json": [503] * 9}
    save(run, 15)
    assert upload.main(arguments(run)) == 2, "does not arrive whole"
    lost = run.rename(run.with_name("lost"))
    assert upload.main(arguments(run, "--restore", "newest")) == 0
    assert contents(run / "iter_0000010") == contents(lost / "iter_0000010")
    assert [path.name for path in whole_checkpoints(run)] == ["iter_0000010"] and find(run)
    assert upload.main(arguments(run, "--restore", "5")) == 0
    assert contents(run / "iter_0000005") == contents(lost / "iter_0000005")
    capsys.readouterr()
    assert upload.main(arguments(run, "--restore", "newest")) == 0
    assert "nothing to bring back: " in capsys.readouterr().out
    for step, sentence in (("5", "iter_0000005 is there already; move it away"), ("15", "no checkpoint of step 15 that")):
        assert upload.main(arguments(run, "--restore", step)) == 2
        assert sentence in capsys.readouterr().err
    assert upload.main(arguments(run, "--restore", "newest", target="s3://bucket/none")) == 2
    assert "error: s3://bucket/none/run holds no checkpoint that arrived whole\n" in capsys.readouterr().err
    assert upload.main(arguments(run, "--restore", "latest")) == 2
    assert "--restore latest is no checkpoint; give newest, or a step" in capsys.readouterr().err
    with sole_worker(run / "lock", "a run"):
        assert upload.main(arguments(run, "--restore", "newest")) == 2
    assert "has a run or a restore already, process" in capsys.readouterr().err


def test_a_restore_goes_on_with_what_is_there_and_lets_nothing_wrong_through(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"file://{tmp_path}/kept"
    assert upload.main(arguments(run, target=target)) == 0
    lost = run.rename(run.with_name("lost"))
    partial = run / "iter_0000010.partial"
    partial.mkdir(parents=True)
    (partial / "__0_0.distcp").write_bytes((lost / "iter_0000010" / "__0_0.distcp").read_bytes())
    (partial / ".metadata").write_text("cut o")
    (partial / "of another").touch()
    fetched: list[str] = []
    fetch = FsspecFiles.fetch

    def note_and_fetch(store: FsspecFiles, sizes: dict[str, int], folder: Path) -> None:
        fetched.extend(sizes)
        fetch(store, sizes, folder)

    monkeypatch.setattr(FsspecFiles, "fetch", note_and_fetch)
    assert upload.main(arguments(run, "--restore", "newest", target=target)) == 0
    assert contents(run / "iter_0000010") == contents(lost / "iter_0000010")
    assert sorted(fetched) == sorted([".metadata", STATE, MARKER])

    files, root = fsspec.url_to_fs(f"{target}/run/iter_0000005")
    files.pipe_file(f"{root}/__0_0.distcp", b"_" * files.size(f"{root}/__0_0.distcp"))
    monkeypatch.setattr(download, "DELAYS", (0.01,))
    with pytest.raises(Unreachable, match=r"__0_0\.distcp did not arrive as sent \(size or SHA-256\)"):
        upload.restore(run, f"{target}/run", 5)
    assert not (run / "iter_0000005").exists()
    with pytest.raises(ConversionError, match="holds no folder that arrived whole"):
        download.download_folder(f"{target}/none", tmp_path / "none")


def test_the_trainer_goes_on_from_what_was_brought_back(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "checkpoint.every_steps=4", "checkpoint.keep_last=9", f"checkpoint.upload=file://{tmp_path}/kept"]
    [whole] = ranks.run(jobs.train, 1, overrides=settings, save=True)
    assert upload.main([str(QUICKSTART), *settings]) == 0
    (tmp_path / "run").rename(tmp_path / "lost")
    assert upload.main([str(QUICKSTART), "--restore", "4", *settings]) == 0
    [again] = ranks.run(jobs.train, 1, overrides=settings)
    assert again["start"] == 4 and again["loss"] == whole["loss"][4:] and again["weights"] == whole["weights"]
