"""The watcher against folders made by hand, a queue made by hand and a clock that the test sets: each event, once."""

import json
import os
from pathlib import Path

import pytest
from alert_channel import listening
from run_stories import T0, Story, submission
from tiny_runs import QUICKSTART

from conversion import ConversionError
from conversion.watching import sole_worker
from slurm import watch
from slurm.scheduler import Job, Slurm
from slurm.watch import Watcher
from slurm.watch_checks import NO_ANSWER_SECONDS, NOBODY_SECONDS, UPLOAD_SECONDS, WAITS_SECONDS
from smol_config import mapping_to_yaml, merge_files
from smol_train.callbacks.alerts import Alerts
from smol_train.sections.watch import AlertsConfig

SETTINGS = ["watchdog.minutes=10", "watchdog.first_step_minutes=20", "watchdog.pause_minutes=15"]


class Queue(Slurm):
    """Slurm, as the test says."""

    def __init__(self) -> None:
        self.queue: list[Job] | None = []
        self.refusal: str | None = None
        self.asked: list[str] = []

    def jobs(self) -> list[Job] | None:
        return self.queue

    def last_state(self, job: str) -> str | None:
        return "NODE_FAIL"

    def requeue(self, job: str) -> str | None:
        self.asked.append(f"requeue {job}")
        return self.refusal

    def cancel(self, job: str) -> str | None:
        self.asked.append(f"cancel {job}")
        return None

    def has(self, *states: str) -> None:
        """Jobs 7, 8, .. of the run in these states, among others."""
        jobs = [Job(str(7 + at), "pretrain-run-c", state, "Priority", "n[1-2]", "1:00:00") for at, state in enumerate(states)]
        self.queue = [Job("1", "another", "RUNNING", "None", "n3", "5:00"), *jobs]


class Watched:
    """A run of which a test tells the story while a watcher looks."""

    def __init__(self, run: Path) -> None:
        self.story, self.slurm = Story(run), Queue()
        self.run = run
        submission(run, "c", "pretrain", "8")
        self.configure()
        self.slurm.has("RUNNING")
        self.start_watcher()

    def configure(self, *settings: str) -> None:
        config = merge_files(QUICKSTART, [*SETTINGS, f"train.output_dir={self.run}", *settings])
        (self.run / "slurm" / "code" / "c" / "submission" / "config.yaml").write_text(mapping_to_yaml(config))

    def start_watcher(self) -> None:
        self.watcher = Watcher(self.run, self.slurm, Alerts(AlertsConfig(), self.run, is_main=True))

    def look(self, *moments: float) -> list[tuple[str, str]]:
        """Look at these times; returns all alerts so far."""
        for moment in moments:
            self.watcher.look(T0 + moment)
        path = self.run / "alerts.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [(line["event"], line["text"]) for line in lines]

    def heartbeat(self, at: float, phase: str, step: int = 5, rank: int = 0) -> None:
        (self.run / "heartbeat").mkdir(exist_ok=True)
        path = self.run / "heartbeat" / f"rank_{rank}.json"
        path.unlink(missing_ok=True)
        self.story.line(f"heartbeat/rank_{rank}.json", at, rank=rank, step=step, phase=phase)

    def logbook(self) -> str:
        return (self.run / "slurm" / "logbook.md").read_text()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "run")


def checkpoint(run: Path, step: int, size: int, at: float = 0.0) -> None:
    folder = run / f"iter_{step:07d}"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * size)
    (folder / "COMPLETE").touch()
    os.utime(folder / "COMPLETE", (T0 + at, T0 + at))


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


# --- the watcher itself ----------------------------------------------------------------------------------------------------


def everything(watched: Watched) -> None:
    """A run with much to tell."""
    watched.story.start(0)
    watched.story.alert(20, "spike")
    watched.story.steps(21, 1, 30)
    watched.heartbeat(60, "step")
    checkpoint(watched.run, 5, 10)


def test_a_watcher_that_is_started_again_tells_nothing_twice(watched: Watched) -> None:
    watched.configure("checkpoint.upload=s3://bucket/runs")
    watched.start_watcher()
    everything(watched)
    before = watched.look(5000)
    assert {event for event, _ in before} == {"spike", "silent", "upload_lag"}
    text = watched.logbook()
    watched.start_watcher()
    assert watched.look(5060) == before and watched.slurm.asked == ["requeue 7"]
    # What it told by an alert itself comes to the logbook the same way as what the trainer tells.
    assert watched.logbook() == text and text.count("**silent**") == text.count("**spike**") == 1


def test_what_came_while_nobody_watched_is_written_down_in_its_order(watched: Watched) -> None:
    everything(watched)
    watched.look(100)
    watched.story.end(110, "crash")
    watched.story.start(120, checkpoint=5)
    watched.story.alert(115, "crashed")
    watched.start_watcher()
    watched.look(200)
    entries = [line.split("**")[1] for line in watched.logbook().splitlines() if line.startswith("- ")]
    assert entries[-3:] == ["end", "crashed", "start"]
    assert "**end** job 7 with 1 (crash): again\n" in watched.logbook()


def test_half_a_line_waits_for_its_other_half(watched: Watched) -> None:
    watched.look(0)
    with (watched.run / "alerts.jsonl").open("a") as file:
        file.write('{"time": "2027-01-15T08:00:00+00:00", "event": "spike", ')
        file.flush()
        watched.watcher._write_down()
        file.write('"text": "step 5"}\n')
    watched.watcher._write_down()
    assert watched.logbook().count("**spike** step 5\n") == 1


def test_what_a_full_disk_kept_out_of_the_logbook_comes_later(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.story.alert(20, "spike")
    with monkeypatch.context() as full:
        full.setattr(watch, "LOGBOOK", "no/such/folder")
        with pytest.raises(OSError, match="no/such"):
            watched.watcher._write_down()
    watched.watcher._write_down()
    assert watched.logbook().count("**spike**") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"told": {}}', '{"told": {"job": {"x": 1}}, "read": {}}'])
def test_a_state_that_cannot_be_read_is_begun_anew(watched: Watched, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (watched.run / "slurm" / "watch.json").write_text(text)
    watched.start_watcher()
    assert "watch.json cannot be read" in capsys.readouterr().out
    watched.look(0)
    assert "**job**" in watched.logbook()


def test_a_second_watcher_and_a_folder_that_is_no_run_are_refused(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert watch.main([str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert watch.main([str(tmp_path / "nothing")]) == 93, "a job is not started again for it"
    assert "has no training job in slurm/code; give the folder of a run that was submitted" in capsys.readouterr().err
    with sole_worker(watched.run / "slurm" / "watch.lock", "a watcher"), pytest.raises(ConversionError, match="has a watcher"):
        watch.watch(watched.run, 1)


def test_it_ends_when_the_run_is_done_having_written_that_down(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "Slurm", lambda: watched.slurm)
    watched.slurm.has()
    watched.story.alert(50, "done")
    assert watch.main([str(watched.run)]) == 0
    assert "**done** done\n" in watched.logbook() and "the run is done" in capsys.readouterr().out


def test_a_run_that_was_done_and_is_submitted_again_is_watched(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def jobs() -> list[Job]:
        watched.slurm.has(*states.pop(0))
        return watched.slurm.queue or []

    states = [["PENDING"], ["RUNNING"], []]
    monkeypatch.setattr(watch, "Slurm", lambda: watched.slurm)
    monkeypatch.setattr(watched.slurm, "jobs", jobs)
    watched.story.alert(50, "done")
    watch.watch(watched.run, 0.01)
    assert not states and "job 7 is RUNNING" in watched.logbook()


def test_a_look_that_fails_is_followed_by_the_next(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def jobs() -> list[Job]:
        if "failed" not in caplog.text:
            raise OSError("a file system that does not answer")
        watched.story.alert(50, "done")
        return []

    monkeypatch.setattr(watch, "Slurm", lambda: watched.slurm)
    monkeypatch.setattr(watched.slurm, "jobs", jobs)
    watch.watch(watched.run, 0.01)
    assert caplog.text.count("this look at") == 1 and "**done**" in watched.logbook()


def test_the_runs_webhook_is_used_where_it_is_known(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.configure("alerts.webhook=${MY_WEBHOOK}")
    assert watch.alerts_of(watched.run).url is None
    assert "alerts.webhook=${MY_WEBHOOK} is not set here: alerts go to" in capsys.readouterr().out
    monkeypatch.setenv("MY_WEBHOOK", "https://hooks.example/secret")
    assert watch.alerts_of(watched.run).url == "https://hooks.example/secret"
    assert "secret" not in capsys.readouterr().out


def test_what_it_tells_reaches_the_channel(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "Slurm", lambda: watched.slurm)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    watched.story.start(0)
    watched.story.end(50, "stopped", "stop")
    watched.story.alert(60, "done")
    watched.slurm.has()
    with listening() as channel:
        watched.configure(f"alerts.webhook={channel.url}")
        watch.watch(watched.run, 1)
        assert [body["text"].partition(": ")[2] for _, body in channel.posts] == ["chain_stopped: the run has stopped: stopped"]
