"""Runs that hang, freeze or lose a rank: the others leave in time, with every stack on disk and a state to go on from."""

import json
import subprocess
from pathlib import Path

import pytest
from ranks import Ranks
from tiny_runs import QUICKSTART
from watch_jobs import world

import pretrain_smol
from smol_config import ConfigError, parse
from smol_train.callbacks.watchdog import collective_timeout
from smol_train.parallel import TIMEOUT
from smol_train.sections.watch import WatchdogConfig

LIMITS = ["watchdog.minutes=0.05", "watchdog.first_step_minutes=1", "watchdog.pause_minutes=0.2", "checkpoint.every_steps=3"]


def faulty(fault: str, rank: int, step: int, overrides: list[str]) -> list[str]:
    return ["tests/watch_jobs.py", fault, str(rank), str(step), "--config", str(QUICKSTART), *overrides, *LIMITS]


def codes(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(timeout=240) for process in processes]


def alerts(run: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "alerts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_hung_rank_leaves_all_stacks_an_alert_and_a_run_that_goes_on(overrides: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with world(2, faulty("sleeps", rank=1, step=4, overrides=overrides)) as processes:
        assert codes(processes) == [85, 85]
    stacks = {path.name: path.read_text() for path in (run / "hangs" / "001").iterdir()}
    assert sorted(stacks) == ["rank_0.txt", "rank_1.txt"]
    assert stacks["rank_0.txt"].startswith("rank 0 made no progress for ")
    assert "in phase 'step' after step 4" in stacks["rank_0.txt"] and "megatron/core/distributed/" in stacks["rank_0.txt"]
    assert "in sleep_for_ever" in stacks["rank_1.txt"]
    heartbeats = [json.loads((run / "heartbeat" / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert {(beat["rank"], beat["step"], beat["phase"]) for beat in heartbeats} == {(0, 4, "step"), (1, 4, "step")}
    assert [alert["event"] for alert in alerts(run)] == ["started", "stalled"]

    with world(2, ["pretrain_smol.py", "--config", str(QUICKSTART), *overrides, *LIMITS]) as processes:
        assert codes(processes) == [0, 0]
    assert [alert["event"] for alert in alerts(run)][2:] == ["resumed", "done"]
    assert alerts(run)[2]["text"] == "step 3 of 10 on 2 ranks"
    assert json.loads((run / "heartbeat" / "rank_1.json").read_text())["phase"] == "ended"


@pytest.mark.slow
def test_a_rank_that_hangs_while_saving_has_the_longer_allowance(overrides: list[str], tmp_path: Path) -> None:
    with world(2, faulty("saves", rank=0, step=3, overrides=overrides)) as processes:
        assert codes(processes) == [85, 85]
    stacks = (tmp_path / "run" / "hangs" / "001" / "rank_0.txt").read_text()
    assert "in phase 'between steps' after step 3" in stacks and "in sleep_for_ever" in stacks
    assert float(stacks.split()[6]) >= 12  # seconds: 0.2 minutes, four times what a step has


@pytest.mark.slow
def test_the_others_leave_when_a_rank_freezes(overrides: list[str], tmp_path: Path) -> None:
    """Without a launcher to end them, and without the frozen rank's stacks, which nobody can write."""
    with world(2, faulty("frozen", rank=1, step=4, overrides=overrides)) as processes:
        assert processes[0].wait(timeout=240) == 85
        assert processes[1].poll() is None
    assert [path.name for path in (tmp_path / "run" / "hangs" / "001").iterdir()] == ["rank_0.txt"]
    assert (tmp_path / "run" / "iter_0000003" / "COMPLETE").exists()


@pytest.mark.slow
def test_the_others_leave_when_a_rank_is_killed(overrides: list[str], tmp_path: Path) -> None:
    with world(2, faulty("killed", rank=1, step=4, overrides=overrides)) as processes:
        survivor, killed = codes(processes)
    assert killed == -9 and survivor not in (0, 93)
    assert alerts(tmp_path / "run")[-1]["event"] in ("crashed", "stalled")  # gloo sees the closed connection, NCCL may not
    assert (tmp_path / "run" / "iter_0000003" / "COMPLETE").exists()


def test_a_run_without_a_watchdog_writes_no_heartbeat(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    without = [*overrides, "watchdog.minutes=0"]
    assert ranks.run(pretrain_smol.train, 1, config_path=str(QUICKSTART), overrides=without) == [0]
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "heartbeat").exists()


def test_collectives_wait_longer_than_the_watchdog() -> None:
    assert collective_timeout(WatchdogConfig(pause_minutes=90)).total_seconds() == 100 * 60
    assert collective_timeout(WatchdogConfig(minutes=0)) == TIMEOUT


def test_a_first_step_with_less_time_than_others_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"watchdog.first_step_minutes=5.0 is below minutes=30.0, but .* raise it"):
        parse(WatchdogConfig, {"first_step_minutes": 5}, source="test", at="watchdog")
