"""The watcher against folders made by hand, a queue made by hand and a clock that the test sets: each event, once."""

import os
from pathlib import Path

import pytest
from watched_run import Watched, checkpoint

from slurm import watch
from slurm.watch_checks import NO_ANSWER_SECONDS, NOBODY_SECONDS, UPLOAD_SECONDS, WAITS_SECONDS


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "run")


# --- what Slurm sees -------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_well_has_a_logbook_and_no_alerts(watched: Watched) -> None:
    watched.story.start(0)
    watched.heartbeat(60, "step")
    watched.story.steps(61, 1, 5)
    assert watched.look(65, 125) == []
    text = watched.logbook()
    assert text.startswith("# Logbook of run\n\nTimes are UTC.\n\n- 2023-11-14 ")
    assert text.count("**job** job 7 is RUNNING on n[1-2], 1:00:00 until its time limit\n") == 1
    assert text.count("**start** job 7 on n1,n2, no checkpoint yet\n") == 1
    assert text.count("**progress** step 5 of 700, 11 min 35 s left\n") == 1


def test_progress_is_told_once_a_day(watched: Watched) -> None:
    watched.story.steps(61, 1, 5)
    watched.look(65, 3600, 86_400, 90_000)
    assert watched.logbook().count("**progress**") == 2


def test_a_job_that_waits_is_told_after_a_while_and_again_after_the_next_requeue(watched: Watched) -> None:
    watched.slurm.has("PENDING")
    assert watched.look(0, WAITS_SECONDS - 1) == []
    [(event, text)] = watched.look(WAITS_SECONDS, WAITS_SECONDS + 60)
    assert (event, text) == ("job_waits", "job 7 has waited for 30 min 00 s (Priority)")
    watched.slurm.has("RUNNING")
    watched.look(WAITS_SECONDS + 120)
    assert "**waiting** is over" in watched.logbook()
    watched.slurm.has("PENDING")
    assert len(watched.look(WAITS_SECONDS + 180, 2 * WAITS_SECONDS + 180)) == 2


def test_a_successor_that_waits_for_the_job_that_runs_is_no_trouble(watched: Watched) -> None:
    watched.slurm.has("RUNNING", "PENDING")
    assert watched.look(0, 10 * WAITS_SECONDS) == []


def test_a_chain_that_stopped_says_why_at_once(watched: Watched) -> None:
    watched.story.start(0)
    watched.story.end(50, "crash", "stop", why="not started again: its last 3 starts brought no checkpoint")
    watched.slurm.has()
    [(event, text)] = watched.look(60, 120, 180)
    assert event == "chain_stopped"
    assert text == "the run has stopped: not started again: its last 3 starts brought no checkpoint"
    watched.slurm.has("PENDING")  # somebody submits it again
    assert len(watched.look(240)) == 1 and "**chain** is over" in watched.logbook()


def test_a_start_that_was_refused_is_a_chain_that_stopped(watched: Watched) -> None:
    watched.story.start(0)
    watched.story.end(50, "time limit")
    watched.story.line("slurm/starts.jsonl", 100, event="refused", chain="c", job="7", why="not started: too often")
    watched.slurm.has()
    assert watched.look(110) == [("chain_stopped", "the run has stopped: not started: too often")]
    assert "**refused** not started: too often\n" in watched.logbook()


def test_a_job_beside_the_training_that_was_refused_stops_nothing(watched: Watched) -> None:
    watched.story.start(0)
    watched.story.end(50, "time limit")
    watched.story.line("slurm/starts.jsonl", 100, event="refused", chain="u", job="8", why="not started: too often")
    watched.slurm.has()
    assert watched.look(110) == []


def test_a_run_that_nobody_will_start_again_is_told_with_what_slurm_knows(watched: Watched) -> None:
    watched.story.start(0)
    watched.slurm.has()
    assert watched.look(60, 60 + NOBODY_SECONDS - 1) == [], "one job may be handing over to another"
    [(event, text)] = watched.look(60 + NOBODY_SECONDS, 600)
    assert event == "chain_stopped"
    assert text.endswith("it is not done: the last one, 7, ended (nobody told why, NODE_FAIL for Slurm); submit it again")


def test_a_job_that_was_cancelled_before_it_started_is_told(watched: Watched) -> None:
    watched.slurm.has()
    assert "it is not done: none has started; submit it again" in watched.look(0, NOBODY_SECONDS)[0][1]


def test_a_controller_that_does_not_answer_changes_nothing_and_is_told_in_the_end(watched: Watched) -> None:
    watched.story.start(0)
    watched.slurm.has("PENDING")
    watched.look(0)
    watched.slurm.queue = None
    assert watched.look(60, 60 + NO_ANSWER_SECONDS - 1) == []
    [(event, _)] = watched.look(60 + NO_ANSWER_SECONDS, 5000)
    assert event == "scheduler_silent" and not watched.slurm.asked
    watched.slurm.has("PENDING")
    [_, (event, _)] = watched.look(5060)
    assert event == "job_waits", "it waited all the time"
    assert "**scheduler** is over" in watched.logbook()


# --- what Slurm does not see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "minutes"),
    [("step", 10), ("first step", 20), ("start-up", 20), ("between steps", 15), ("after the last step", 15), ("ended", 0)],
)
def test_a_job_whose_ranks_are_silent_is_started_again_once(watched: Watched, phase: str, minutes: int) -> None:
    watched.story.start(0)
    watched.heartbeat(10, phase, rank=0)
    watched.heartbeat(60, phase, rank=1)
    assert watched.look(60 + 60 * minutes + 299) == [] and not watched.slurm.asked
    [(event, text)] = watched.look(60 + 60 * minutes + 301, 60 + 60 * minutes + 361)
    assert event == "silent"
    assert f"(phase '{phase}', step 5); it is put back into the queue" in text
    assert watched.slurm.asked == ["requeue 7"]
    # The next start has its own time.
    watched.story.start(5000)
    assert len(watched.look(5060)) == 1


def test_ranks_that_never_begin_are_told_and_not_started_again(watched: Watched) -> None:
    watched.heartbeat(-50, "step")  # of the start before
    watched.story.start(0)
    assert watched.look(2 * 20 * 60 + 299) == []
    [(event, text)] = watched.look(2 * 20 * 60 + 301, 9000)
    assert event == "silent" and "no rank has begun to train; look at its log" in text and not watched.slurm.asked


def test_where_requeueing_is_forbidden_the_successor_takes_over(watched: Watched) -> None:
    watched.story.start(0)
    watched.heartbeat(60, "step")
    watched.slurm.refusal = "Requested operation is presently disabled"
    watched.slurm.has("RUNNING", "PENDING")
    [(_, text)] = watched.look(5000, 5060)
    assert text.endswith("; it is cancelled, and 8 takes over")
    assert watched.slurm.asked == ["requeue 7", "cancel 7"]


def test_where_nothing_can_be_done_it_says_what_to_do_and_tries_again(watched: Watched) -> None:
    watched.story.start(0)
    watched.heartbeat(60, "step")
    watched.slurm.refusal = "Access/permission denied"
    [(_, text)] = watched.look(5000, 5060)
    assert text.endswith("; it cannot be put back into the queue (Access/permission denied): scancel 7, and submit it again")
    assert watched.slurm.asked == ["requeue 7"] * 2
    watched.slurm.refusal = None
    assert len(watched.look(5120, 5180)) == 1 and watched.slurm.asked == ["requeue 7"] * 3


def test_without_heartbeats_nothing_is_concluded(watched: Watched) -> None:
    watched.configure("watchdog.minutes=0")
    watched.story.start(0)
    watched.heartbeat(60, "step")
    assert watched.look(50_000) == [] and not watched.slurm.asked


def test_throughput_that_falls_is_told_unless_the_trainer_did(watched: Watched) -> None:
    watched.story.start(0)
    for step in range(120):
        rate = 1000.0 if step < 100 else 700.0
        watched.story.line("metrics.jsonl", step, step=step, **{"perf/tokens_per_second": rate})
    [(event, text)] = watched.look(200, 260)
    assert (event, text) == ("throughput_drop", "700 tokens/s, 70% of the latest 120 steps' median")
    for step in range(120, 160):
        watched.story.line("metrics.jsonl", step, step=step, **{"perf/tokens_per_second": 950.0})
    watched.look(320)
    assert "**throughput** is over" in watched.logbook()


def test_what_the_trainer_told_of_throughput_is_not_told_again(watched: Watched) -> None:
    watched.story.start(0)
    watched.story.alert(110, "throughput_drop")
    for step in range(120):
        watched.story.line("metrics.jsonl", step, step=step, **{"perf/tokens_per_second": 1000.0 if step < 100 else 700.0})
    assert watched.look(200) == [("throughput_drop", "throughput_drop")]


@pytest.mark.parametrize(
    ("bytes_", "files", "text"),
    [
        (150_000, 10**6, "150.0 kB are free where the run writes, and a checkpoint takes 100.0 kB; make room"),
        (10**9, 3, "3 more files fit where the run writes, and a checkpoint has 2; delete some"),
    ],
)
def test_a_disk_without_room_for_two_checkpoints_is_told(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, bytes_: int, files: int, text: str
) -> None:
    checkpoint(watched.run, 5, 100_000)
    real = os.statvfs(watched.run)
    fields = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
    fake = type("Room", (), fields | {"f_favail": files, "f_files": 10**7})
    monkeypatch.setattr(watch.os, "statvfs", lambda _: fake)
    monkeypatch.setattr(watch, "free_bytes", lambda _: bytes_)
    assert watched.look(0, 60) == [("disk_low", text)]
    monkeypatch.setattr(watch, "free_bytes", lambda _: 10**9)
    fake.f_favail, fake.f_files = 0, 0  # as file systems say that do not count them
    assert len(watched.look(120)) == 1 and "**disk** is over" in watched.logbook()


def test_checkpoints_that_do_not_arrive_are_told_where_uploads_are_on(watched: Watched) -> None:
    checkpoint(watched.run, 5, 10, at=0)
    checkpoint(watched.run, 10, 10, at=1000)
    assert watched.look(10 * UPLOAD_SECONDS) == []
    watched.configure("checkpoint.upload=s3://bucket/runs")
    watched.start_watcher()
    assert watched.look(UPLOAD_SECONDS - 1) == []
    [(event, text)] = watched.look(UPLOAD_SECONDS, UPLOAD_SECONDS + 60)
    assert event == "upload_lag"
    assert text.startswith("2 checkpoints have not arrived at their target, iter_0000005 since 1 h 00 min; see whether")
