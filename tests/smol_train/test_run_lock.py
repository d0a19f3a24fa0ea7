"""Two runs pointed at one folder: the second is refused on all its ranks; a run that was killed leaves no lock behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import watch_jobs
from ranks import Ranks
from tiny_runs import QUICKSTART, REPOSITORY

import pretrain_smol


def holding(run: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `run`, and says so."""
    code = (
        "import sys, time; from pathlib import Path; from smol_train.sections.layout import ParallelConfig\n"
        "from smol_train.parallel import process_groups; from smol_train.run_lock import run_lock\n"
        "with process_groups(ParallelConfig(), seed=0) as ranks, run_lock(Path(sys.argv[1]), ranks):\n"
        "    print('held', flush=True); time.sleep(1000)"
    )
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], cwd=REPOSITORY, env=alone, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_on_all_ranks_and_changes_nothing(ranks: Ranks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = holding(run)
    try:
        before = (run / "lock").read_text()
        held = json.loads(before)
        assert held["pid"] == holder.pid and held["host"]
        refusals = ranks.run(watch_jobs.lock_refusal, 2, run=run)
        expected = f"train.output_dir={run} is in use by process {holder.pid} on {held['host']} since {held['started']}"
        assert refusals == [f"{expected}; stop that run or give another train.output_dir"] * 2
        assert (run / "lock").read_text() == before
    finally:
        holder.kill()
        holder.wait()


def test_the_command_exits_93(overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = holding(tmp_path / "run")
    try:
        assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides]) == 93
    finally:
        holder.kill()
        holder.wait()
    assert f"is in use by process {holder.pid}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_killed_run_leaves_no_lock(ranks: Ranks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = holding(run)
    (run / "iter_0000001").mkdir()
    holder.kill()
    holder.wait()
    assert (run / "lock").exists()
    assert ranks.run(watch_jobs.lock_refusal, 2, run=run) == [None, None]


def test_a_writer_that_outlives_its_run_still_holds_the_lock(ranks: Ranks, tmp_path: Path) -> None:
    """As the forked writer of an asynchronous checkpoint: its file descriptors are copies of its parent's."""
    run = tmp_path / "run"
    [(parent, writer)] = ranks.run(watch_jobs.lock_and_fork, 1, run=run)
    try:
        [refusal] = ranks.run(watch_jobs.lock_refusal, 1, run=run)
        assert f"is in use by process {parent} on " in refusal
    finally:
        os.kill(writer, 9)
    deadline = time.monotonic() + 60
    while (refused := ranks.run(watch_jobs.lock_refusal, 1, run=run)) != [None]:
        assert time.monotonic() < deadline, refused


def test_a_folder_made_for_the_lock_alone_goes_again(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(watch_jobs.lock_refusal, 2, run=tmp_path / "run") == [None, None]
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_said_and_no_obstacle(ranks: Ranks, tmp_path: Path) -> None:
    [said] = ranks.run(watch_jobs.lock_without_support, 1, run=tmp_path / "run")
    assert (
        said == f"{tmp_path / 'run'} cannot be locked (Operation not supported): nothing keeps a second run out of this folder"
    )
