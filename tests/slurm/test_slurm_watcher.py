"""The watcher itself: started again, one of a run, through looks that fail and disks that are full, to its end."""

from pathlib import Path

import pytest
from alert_channel import listening
from watched_run import Watched, checkpoint

from conversion import ConversionError
from conversion.watching import sole_worker
from slurm import watch
from slurm.scheduler import Job


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "run")


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
