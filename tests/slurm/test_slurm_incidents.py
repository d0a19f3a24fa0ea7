"""What interrupted a run and what it cost, told from files made by hand; every story has a length that one can add up."""

import json
import shutil
from pathlib import Path

import pytest
from run_stories import T0, Story, submission
from tiny_runs import REPOSITORY

from slurm import incidents
from slurm.history import read_history
from slurm.incidents import Incident, Time, duration, gpu_hours, wall_time
from slurm.scheduler import submissions


def told(story: Story) -> list[Incident]:
    return incidents.incidents(read_history(story.run))


def spent_until(story: Story, moment: float) -> Time:
    return wall_time(read_history(story.run), T0 + moment)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "run")


def killed_rank(story: Story) -> None:
    """Started at 0, 100 steps from 20 on, a checkpoint of step 60; killed at 120, noticed at 125, again at 200, done at 275."""
    story.start(0)
    story.steps(21, 1, 60)
    story.steps(81, 61, 100, lost=True)
    story.end(125, "crash")
    story.start(200, checkpoint=60)
    story.steps(231, 61, 105)
    story.end(275, "done", "done")


def test_a_killed_rank_costs_the_wait_and_the_steps_since_the_checkpoint(story: Story) -> None:
    killed_rank(story)
    [one] = told(story)
    assert (one.what, one.nodes, one.last_step, one.lost_steps) == ("crash", [], 100, 40)
    moments = (one.last_step_time, one.detected, one.started_again, one.first_step, one.made_up)
    assert [moment and moment - T0 for moment in moments] == [120, 125, 200, 231, 271], "step 101 is the first beyond 100"
    assert one.recover_seconds == 151
    spent = spent_until(story, 9999)
    assert spent == Time(steps=105, lost=40, between_steps=0, starting=20 + 30, ending=5, waiting=75)
    assert spent.total == 275, "the clock stops with the run's end" and spent.goodput == 105 / 275


def test_a_time_limit_with_a_save_loses_no_step(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.alert(62, "stopped")
    story.end(63, "time limit")
    story.start(100, checkpoint=50)
    story.steps(111, 51, 60)
    [one] = told(story)
    assert (one.what, one.lost_steps) == ("time limit", 0)
    assert one.made_up == one.first_step == T0 + 111


def test_a_lost_node_that_nobody_told_is_known_by_the_next_start(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.start(200, checkpoint=-1, nodes="n1 n3")
    story.steps(221, 1, 10)
    [one] = told(story)
    assert (one.what, one.nodes, one.detected) == ("lost node n2", ["n2"], None)
    assert (one.lost_steps, one.made_up) == (50, None), "the steps are not made up yet"
    spent = spent_until(story, 230)
    assert (spent.waiting, spent.ending, spent.total) == (140, 0, 230)


@pytest.mark.parametrize(
    ("alert", "reason", "what"),
    [
        ("stalled", "asked for", "hang"),
        ("nan", "asked for", "suspected device"),
        ("spike", "asked for", "asked to end"),
        ("silent", "ended", "silent"),
        ("spike", "ended", "ended by Slurm"),
        ("spike", "preempted", "preempted"),
        ("spike", "stopped", "stopped"),
    ],
)
def test_alerts_and_reasons_say_what_it_was(story: Story, alert: str, reason: str, what: str) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.alert(70, alert)
    story.end(80, reason)
    story.start(100)
    assert [one.what for one in told(story)] == [what]


def test_a_damaged_checkpoint_is_named_and_the_older_one_counts(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 40)
    story.steps(51, 41, 100, lost=True)
    story.end(115, "crash")
    story.start(120, checkpoint=80)
    story.alert(125, "damaged_checkpoint")
    story.steps(131, 41, 110)
    [one] = told(story)
    assert (one.what, one.lost_steps) == ("crash, damaged checkpoint", 60)
    assert one.detected == T0 + 115


def test_a_fault_put_in_on_purpose_is_where_the_recovery_begins(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.line("slurm/faults.jsonl", 65, fault="hang-rank", target="rank 1")
    story.alert(90, "stalled")
    story.end(95, "asked for")
    story.start(100, checkpoint=50)
    story.steps(111, 51, 60)
    [one] = told(story)
    assert (one.what, one.recover_seconds) == ("hang (hang-rank)", 46)
    assert one.detected == T0 + 90


def test_a_start_that_fails_at_once_leaves_the_recovery_to_the_next(story: Story) -> None:
    killed = [(0.0, 11, 1, 50), (100.0, None, 0, 0), (200.0, 211, 51, 60)]
    for began, at, first, last in killed:
        story.start(began, checkpoint=first - 1)
        if at:
            story.steps(at, first, last)
        story.end(began + 62, "crash")
    first, second, _ = told(story)
    assert first.made_up == T0 + 211 and first.started_again == T0 + 100
    assert (second.last_step, second.last_step_time) == (0, None)
    assert second.recover_seconds == 211 - 162, "from its end, since it did no step"
    assert spent_until(story, 262).starting == 10 + 62 + 10


def test_the_last_interruption_waits_for_its_start(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.end(65, "crash", "stop")
    [one] = told(story)
    assert (one.started_again, one.made_up, one.recover_seconds) == (None, None, None)


def test_a_run_that_was_done_and_is_continued_was_not_interrupted(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 50)
    story.end(62, "done", "done")
    story.start(9000, checkpoint=50)
    story.steps(9011, 51, 60)
    story.end(9020, "done", "done")
    assert not told(story)
    assert spent_until(story, 9999).total == 62 + 20


def test_saves_between_steps_and_a_rollback_do_not_count(story: Story) -> None:
    story.start(0)
    story.steps(11, 1, 20)
    story.steps(41, 21, 30, lost=True)  # 10 seconds of saving before it, rolled back after it
    story.steps(56, 21, 25)
    assert not told(story)
    assert spent_until(story, 60) == Time(steps=25, lost=10, between_steps=10 + 5, starting=10)


def test_lines_of_every_tenth_step_count_for_all_ten(story: Story) -> None:
    story.start(0)
    for number in range(1, 6):
        story.line("metrics.jsonl", 10 + 10 * number, step=10 * number, **{"perf/step_seconds": 0.9})
    spent = spent_until(story, 60)
    assert spent.steps == pytest.approx(0.9 + 4 * 9) and spent.between_steps == pytest.approx(4)


def test_gpu_hours_are_added_up_by_purpose_and_other_jobs_are_no_attempts(story: Story) -> None:
    submission(story.run, "c", "pretrain", "h100:8")
    submission(story.run, "d", "pretrain", "4", "debugging")
    submission(story.run, "e", "export", "")
    submission(story.run, "f", "preflight", "1", "ablation")
    story.start(0)
    story.chain = "e"
    story.start(10)
    story.chain = "f"
    story.start(20, nodes="n3")
    story.end(20 + 3600, "done", "done")
    story.chain = "c"
    story.end(1800, "stopped", "stop")
    story.chain = "d"
    story.start(4000)
    story.steps(4000 + 900, 1, 1)  # no end was told
    history = read_history(story.run)
    assert [attempt.chain for attempt in history.training] == ["c", "d"]
    assert gpu_hours(history) == {"main": pytest.approx(16 * 0.5), "ablation": 1.0, "debugging": pytest.approx(8 * 0.25)}


def test_only_pretraining_makes_the_progress_of_a_run(story: Story) -> None:
    jobs = REPOSITORY / "slurm" / "jobs"
    for file in jobs.glob("*.sh"):
        submission(story.run, f"of-{file.stem}", file.stem, "8")
        shutil.copy(file, story.run / "slurm" / "code" / f"of-{file.stem}" / "slurm" / "jobs")
    assert [one.job for one in submissions(story.run) if one.trains] == ["pretrain"], "a rehearsal trains beside the run"


def test_torn_and_old_lines_are_passed_over(story: Story) -> None:
    story.start(0)
    (story.run / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 2, "ti')
    (story.run / "slurm" / "faults.jsonl").write_text("\n")
    assert not read_history(story.run).steps and spent_until(story, 10) == Time(starting=10)


def test_the_command_prints_a_table_json_and_markdown(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    killed_rank(story)
    assert incidents.main([str(story.run)]) == 0
    shown = capsys.readouterr().out
    assert "crash               100        5 s  1 min 15 s" in shown, shown
    assert "2 min 31 s" in shown and "goodput 38.2 %" in shown
    assert incidents.main([str(story.run), "--markdown"]) == 0
    assert "| crash | 100 | 5 s | 1 min 15 s | 31 s | 40 s | 2 min 31 s | 40 |" in capsys.readouterr().out
    assert incidents.main([str(story.run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["incidents"][0]["recover_seconds"] == 151 and shown["time"]["goodput"] == pytest.approx(105 / 275)


def test_a_folder_without_starts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert incidents.main([str(tmp_path)]) == 2
    assert "has no starts in slurm/starts.jsonl; give the folder of a run that was submitted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (8040, "2 h 14 min"), (1_050_000, "12 d 3 h")],
)
def test_durations_read_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
