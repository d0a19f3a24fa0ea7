"""faults.sh on the files of a run, without Slurm: a damaged checkpoint, a full disk, and what is asked for wrongly."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Outcome, fake_program, wait_until
from tiny_runs import REPOSITORY

from smol_train.checkpoint_folder import MARKER, TrainState, folder_name, listing_text, state_text
from smol_train.checkpoint_integrity import describe, newest_good

FAULTS = REPOSITORY / "slurm" / "faults.sh"
Command = Callable[..., Outcome]


def noted(run: Path) -> list[tuple[str, str]]:
    """(fault, target) of every line; their times are of now."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "slurm" / "faults.jsonl").read_text().splitlines()]
    assert all(0 <= (datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds() < 3600 for line in lines)
    return [(line["fault"], line["target"]) for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def faults(*words: str | Path, **environment: str) -> Outcome:
    """faults.sh where there is no lab."""
    without = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    command = ["bash", str(FAULTS), *map(str, words)]
    done = subprocess.run(command, env={**without, **environment}, capture_output=True, text=True, timeout=60, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def checkpoint(run: Path, step: int) -> Path:
    folder = run / folder_name(step)
    folder.mkdir()
    (folder / "weights.distcp").write_bytes(bytes(range(256)) * 16)
    (folder / "run.yaml").write_text("model: {}\n")
    (folder / "state.json").write_text(state_text(TrainState(step=step, reason="x" * 10_000)))
    stored = {name: describe(folder / name) for name in ("weights.distcp", "run.yaml")}
    (folder / MARKER).write_text(listing_text(step, stored))
    return folder


def test_the_newest_whole_checkpoint_is_damaged_and_no_other(run: Path) -> None:
    good, newest, unfinished = checkpoint(run, 999_999), checkpoint(run, 10_000_000), checkpoint(run, 10_000_005)
    (unfinished / MARKER).unlink()
    (run / "iter_10000010.partial").mkdir()
    (run / "iter_10000010.partial" / MARKER).touch()
    before = (newest / "weights.distcp").read_bytes()
    outcome = faults("--yes", "corrupt-latest", run)
    after = (newest / "weights.distcp").read_bytes()
    assert outcome.code == 0 and outcome.out == "corrupt-latest: iter_10000000/weights.distcp, byte 2048\n"
    assert [at for at in range(4096) if before[at : at + 1] != after[at : at + 1]] == [2048] and len(after) == 4096
    assert noted(run) == [("corrupt-latest", "iter_10000000/weights.distcp, byte 2048")]
    told: list[Path] = []
    assert newest_good(run, damaged=lambda folder, _: told.append(folder)) == good and told == [newest]


def test_a_run_without_anything_to_damage_is_told(run: Path) -> None:
    outcome = faults("--yes", "corrupt-latest", run)
    assert outcome.code == 2 and f"{run} has no whole checkpoint" in outcome.err
    (run / folder_name(5)).mkdir()
    (run / folder_name(5) / MARKER).touch()
    outcome = faults("--yes", "corrupt-latest", run)
    assert outcome.code == 2 and f"{run / folder_name(5)} holds nothing that could be damaged" in outcome.err
    assert not (run / "slurm").exists()


def free_megabytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free >> 20


@pytest.fixture
def filled(run: Path) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """The file that fills the disk, and the command that keeps it. It is small: others need this disk."""
    leave = free_megabytes(run) - 200
    command = ["bash", str(FAULTS), "--yes", "fill-disk", str(run), str(leave), "100"]
    file = run / "slurm" / "fill-disk"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fill:
        wait_until(lambda: file.exists() and file.stat().st_size, "the disk is not filled")
        yield file, fill
        fill.terminate()
        fill.wait()


def test_a_disk_is_filled_until_it_is_undone(run: Path, filled: tuple[Path, "subprocess.Popen[str]"]) -> None:
    file, fill = filled
    [(fault, target)] = noted(run)
    assert fault == "fill-disk" and target.endswith("are free, for 100 seconds")
    assert int(target.split()[0]) << 20 == file.stat().st_size <= file.stat().st_blocks * 512, "really taken"
    outcome = faults("--yes", "fill-disk", run)
    assert outcome.code == 2 and f"{file} is there, from a fill-disk that goes on or was killed" in outcome.err
    assert faults("--yes", "fill-disk", run, "--undo").code == 0
    assert fill.wait(60) == 0 and not file.exists(), "the first one ends too"
    outcome = faults("--yes", "fill-disk", run, "--undo")
    assert outcome.code == 2 and f"{file} is not there: nothing to undo" in outcome.err


def test_a_fill_disk_that_is_ended_takes_its_file_along(filled: tuple[Path, "subprocess.Popen[str]"]) -> None:
    file, fill = filled
    fill.terminate()
    fill.wait(60)
    assert not file.exists()


def test_a_disk_that_is_fuller_already_is_left_alone(run: Path) -> None:
    outcome = faults("--yes", "fill-disk", run, "999999999")
    assert outcome.code == 2 and f"{run} has " in outcome.err and "not more than 999999999" in outcome.err
    assert not (run / "slurm").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "FAULT  is none of: kill-rank hang-rank slow-rank kill-node fill-disk corrupt-latest"),
        (["kill", "RUN"], "FAULT kill is none of: "),
        (["kill-rank"], "kill-rank does not take 0 arguments"),
        (["corrupt-latest", "RUN", "5"], "corrupt-latest does not take 2 arguments"),
        (["kill-rank", "RUN", "1", "5"], "kill-rank does not take 3 arguments"),
        (["slow-rank", "RUN", "1", "1.5"], "SECONDS=1.5 is no whole number"),
        (["kill-rank", "RUN/none"], "RUN/none is not there; give the folder of a run"),
        (["fill-disk", "RUN", "much"], "MEGABYTES=much is no whole number"),
        (["hang-rank", "RUN", "main"], "RANK main is no whole number"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(run: Path, words: list[str], sentence: str) -> None:
    outcome = faults("--yes", *(word.replace("RUN", str(run)) for word in words))
    assert outcome.code == 2 and sentence.replace("RUN", str(run)) in outcome.err
    assert outcome.out == "" and not (run / "slurm").exists()


def test_nothing_is_done_without_yes(run: Path, tmp_path: Path) -> None:
    folder = checkpoint(run, 5)
    before = (folder / "weights.distcp").read_bytes()
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=lab\n")  # somebody else's
    for environment in ({}, {"SLURM_CONF": str(conf)}):
        for fault in ("corrupt-latest", "fill-disk", "kill-rank", "kill-node"):
            outcome = faults(fault, run, **environment)
            assert outcome.code == 2 and f"{fault} is real on this cluster; give --yes" in outcome.err
    assert (folder / "weights.distcp").read_bytes() == before and not (run / "slurm").exists()


def test_a_machine_without_slurm_is_told(run: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "realpath", "grep"):
        (programs / name).symlink_to(shutil.which(name) or name)
    outcome = faults("--yes", "kill-rank", run, PATH=str(programs))
    assert outcome.code == 2 and "there is no squeue here" in outcome.err
    fake_program(tmp_path, "squeue", "exit 1")
    for name in ("date", "true"):
        (programs / name).symlink_to(shutil.which(name) or name)
    (programs / "sleep").symlink_to("true")
    outcome = faults("--yes", "kill-rank", run, PATH=str(programs))
    assert outcome.code == 2 and "squeue does not answer" in outcome.err
