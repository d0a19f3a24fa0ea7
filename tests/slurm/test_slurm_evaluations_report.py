"""What is made of the scores that jobs find: the same as `evaluation watch` makes of its own on one machine.

References, alerts, both axes and the picture; of what a job leaves, and once of the real job's script and command.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import alert_channel
import pytest
from evaluated_run import Queue, evaluate, export, points, result
from tiny_runs import QUICKSTART, REPOSITORY

import smol_progress
from evaluation.reference import read_records
from smol_train.checkpoint_folder import digest_of, folder_name

NAME = "eval/task/acc"
SETTING = "SMOL_EVALUATE_REFERENCES"
QUESTIONS = 200


@pytest.fixture
def run(tmp_path: Path, queue: Queue) -> Path:
    queue.runs("1", "2", "3")
    return tmp_path / "run"


def write_scores(folder: Path, step: int, share: float, **more: Any) -> Path:
    """What `run` leaves, where that share of the questions was right, a thousand tokens a step."""
    record: dict[str, Any] = {
        "step": step,
        "tokens": 1000 * step,
        "results": {NAME: share},
        "intervals": {NAME: [share - 0.05, share + 0.05]},
        "chance": {NAME: 0.25},
        "higher_is_better": {NAME: True},
        "statistics": {NAME: "mean"},
        "not_run": {},
    }
    (folder / "samples").mkdir(parents=True)
    right = [1.0] * int(QUESTIONS * share)
    rows = [
        {"question": number, "question_sha256": f"row {number}", "filter": "none", "scores": {"acc": score}}
        for number, score in enumerate(right + [0.0] * (QUESTIONS - len(right)))
    ]
    (folder / "samples" / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps(record | more))
    return folder


def job_ended(run: Path, step: int, share: float, **more: Any) -> Path:
    """The checkpoint's job is done: its folder of `run`, and the file beside it."""
    path = result(run, step, "")
    folder = write_scores(path.with_suffix(""), step, share, **more)
    shutil.copy(folder / "results.json", path)
    return folder


def alerts(run: Path) -> list[str]:
    path = run / "alerts.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["text"] for line in told if line["event"] == "behind"]


def test_a_run_that_falls_behind_a_reference_is_warned_of_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (tokens, share) in enumerate(((5_010, 0.5), (10_010, 0.75), (16_000, 0.9)), start=1):
        write_scores(tmp_path / "wide" / f"step_{number}", number, share, tokens=tokens)  # the last is no neighbour of 15,000
    (tmp_path / "paper.json").write_text(json.dumps({NAME: 0.875}))
    monkeypatch.setenv(SETTING, f"wide={tmp_path / 'wide'} paper={tmp_path / 'paper.json'}")
    for step in (5, 10, 15):
        export(run, step)
        folder = job_ended(run, step, 0.5, not_run={"far": "no Hub"} if step == 15 else {})
    assert evaluate(run) == 0
    [alert] = alerts(run)
    assert alert.startswith(f"step 10 is behind wide: {NAME} 0.5000 beside 0.7500 (95 % of the difference: -0.")
    said = capsys.readouterr().out
    assert said.count(f"WARNING: step 10: behind wide: {NAME} 0.5000 ") == said.count("WARNING") == 1
    assert "step 15: not run: far: no Hub" in said
    assert points(run) == [(step, NAME, 0.5) for step in (5, 10, 15)]
    assert points(run, "evaluations_by_tokens") == [(1000 * step, NAME, 0.5) for step in (5, 10, 15)]
    below = "evaluations_by_tokens/reference"
    assert [(place, value) for place, _, value in points(run, f"{below}/wide")][:2] == [(5_010, 0.5), (10_010, 0.75)]
    assert points(run, f"{below}/paper") == [(1000 * step, NAME, 0.875) for step in (5, 10, 15)]
    assert (run / "evaluations" / "scores.png").read_bytes().startswith(b"\x89PNG")
    compared = json.loads((run / "evaluations" / "behind.json").read_text())
    assert folder.name not in compared["wide"] and [bool(found) for found in compared["wide"].values()] == [False, True]
    before = points(run)
    (run / "evaluations.jsonl").unlink()  # as if killed before it was noted that they are taken
    assert evaluate(run) == 0
    assert alerts(run) == [alert] and points(run) == before and "WARNING" not in capsys.readouterr().out


def test_the_runs_own_webhook_is_told_what_is_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(tmp_path / "wide" / "step_5", 5, 0.9)
    monkeypatch.setenv(SETTING, f"wide={tmp_path / 'wide'}")
    export(run, 5)
    job_ended(run, 5, 0.5)
    with alert_channel.listening() as channel:
        assert evaluate(run, f"alerts.webhook={channel.url}") == 0
        [(_, post)] = channel.posts
    assert post["text"].endswith(f"behind: {alerts(run)[0]}")


def test_a_step_that_was_saved_again_is_compared_again_and_is_a_reference_with_its_newest_scores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scores(tmp_path / "wide" / "step_5", 5, 0.9)
    monkeypatch.setenv(SETTING, f"wide={tmp_path / 'wide'}")
    export(run, 5)
    lost = job_ended(run, 5, 0.5)
    assert evaluate(run) == 0
    export(run, 5, content=" again")
    assert evaluate(run) == 0
    assert len(alerts(run)) == 1, "the old scores are not the new checkpoint's"
    job_ended(run, 5, 0.625)
    os.utime(lost / "results.json", (1, 1))
    assert evaluate(run) == 0
    assert [text.partition(" beside")[0].rpartition(" ")[2] for text in alerts(run)] == ["0.5000", "0.6250"]
    [record] = read_records(run / "evaluations")
    assert record["results"] == {NAME: 0.625}


def test_numbers_alone_are_drawn_at_their_tokens_and_behind_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `held-out` leaves them."""
    write_scores(tmp_path / "wide" / "step_5", 5, 0.9)
    (tmp_path / "paper.json").write_text(json.dumps({NAME: 0.875}))
    monkeypatch.setenv(SETTING, f"wide={tmp_path / 'wide'} paper={tmp_path / 'paper.json'}")
    smol_progress.write(export(run, 5), smol_progress.Progress(5, 5000))
    (export(run, 10) / smol_progress.NAME).write_text("{damaged")
    for step in (5, 10):
        result(run, step, json.dumps({"results": {NAME: 0.5}}))
    assert evaluate(run) == 0
    assert points(run, "evaluations_by_tokens") == [(5000, NAME, 0.5)]
    assert [step for step, *_ in points(run, "evaluations/reference/paper")] == [5, 10]
    assert (run / "evaluations" / "scores.png").exists() and not alerts(run)


def test_what_a_judge_adds_to_a_folder_later_is_taken(run: Path) -> None:
    export(run, 5)
    folder = job_ended(run, 5, 0.5)
    assert evaluate(run) == 0
    record = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(record | {"results": {NAME: 0.5, "eval/essays/judged": 0.25}}))
    assert evaluate(run) == 0
    assert points(run) == [(5, "eval/essays/judged", 0.25), (5, NAME, 0.5)]


def test_scores_of_an_export_that_was_removed_stay_in_the_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    monkeypatch.setattr("evaluation.report.draw", lambda _, ours, *rest: drawn.append([record["step"] for record in ours]))
    for step in (5, 10):
        export(run, step)
        job_ended(run, step, 0.5)
        assert evaluate(run) == 0
        shutil.rmtree(run / "hf" / f"step_{step}")
    assert drawn == [[5], [5, 10]]


def test_a_reference_that_is_none_is_refused_and_one_that_goes_holds_up_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, 5)
    job_ended(run, 5, 0.5)
    monkeypatch.setenv(SETTING, "published")
    assert evaluate(run) == 2
    assert "the reference published is not NAME=FOLDER or NAME=scores.json" in capsys.readouterr().err
    assert not (run / "tensorboard").exists()

    (run / "alerts.jsonl").write_text('{"event": "done", "text": ""}\n')
    write_scores(tmp_path / "wide" / "step_5", 5, 0.9)
    monkeypatch.setenv(SETTING, f"wide={tmp_path / 'wide'}")
    export(run, 10)
    looks = 0

    def next_look(seconds: float, stop: object) -> None:
        nonlocal looks
        looks += 1
        time.sleep(seconds)  # what was put off is due after that
        if looks == 1:
            assert not points(run, "evaluations/reference/wide")
            (tmp_path / "gone").rename(tmp_path / "wide")
        else:
            assert len(alerts(run)) == 1, "it is made up for, though nothing came"
            job_ended(run, 10, 0.9)

    (tmp_path / "wide").rename(tmp_path / "gone")
    monkeypatch.setattr("slurm.evaluations.load_references", lambda given: [])  # it goes once the job has begun
    monkeypatch.setattr("conversion.watching.pause", next_look)
    assert evaluate(run, "--watch", "--every", "0.01") == 0
    assert looks == 2 and [step for step, *_ in points(run)] == [5, 10]
    assert "nothing is compared: the reference " in capsys.readouterr().out


def test_no_heavy_library_is_loaded_beside_the_run(run: Path, tmp_path: Path) -> None:
    """The job has a share of a node without GPUs."""
    write_scores(tmp_path / "wide" / "step_5", 5, 0.9)
    export(run, 5)
    job_ended(run, 5, 0.5)
    code = (
        "import sys\nfrom slurm import evaluations\nassert not evaluations.main(sys.argv[1:])\n"
        "sys.exit(', '.join({'torch', 'transformers', 'lm_eval', 'datasets'} & sys.modules.keys()) or 0)"
    )
    command = [sys.executable, "-c", code, str(QUICKSTART), f"train.output_dir={run}"]
    environment = {**os.environ, SETTING: f"wide={tmp_path / 'wide'}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(alerts(run)) == 1


SUITE = """
folders: [tasks]
dtype: float32
tasks: [{name: colours}]
"""
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
"""


@pytest.mark.slow  # libraries are loaded anew, twice
def test_the_real_command_in_the_jobs_script_is_compared_with_another_run(
    run: Path, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": f"The {thing} is", "choices": ["red", "light blue", "very dark green"], "answer": number % 3}
        for number, thing in enumerate(("sky", "grass", "sea", "rose", "leaf", "sun", "moon", "snow"))
    ]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.replace("ROWS", str(tmp_path / "tasks" / "rows.jsonl")))
    (tmp_path / "suite.yaml").write_text(SUITE)
    for step in (5, 10):
        hf = export(run, step)
        shutil.copytree(base_model, hf, dirs_exist_ok=True)
        smol_progress.write(hf, smol_progress.Progress(step, 1000 * step))
        path = run / "evaluations" / f"step_{step}-{(digest_of(run / folder_name(step)) or '')[:8]}.json"
        (path.parent / f"{path.name}-7.partial").mkdir(parents=True)  # of a start before a requeue
        environment = {
            "SMOL_EVALUATE": f"{sys.executable} -m evaluation run --suite {tmp_path / 'suite.yaml'}",
            "SMOL_CONFIG": str(QUICKSTART),
            "SLURM_JOB_ID": "7",
        }
        script = ["bash", str(REPOSITORY / "slurm" / "evaluate_step.sh"), str(hf), str(path)]
        subprocess.run(script, cwd=REPOSITORY, env={**os.environ, **environment}, check=True)

    name = "eval/colours/acc"
    folder = path.with_suffix("")
    better = shutil.copytree(folder, tmp_path / "better" / "step_1")  # the same model at 10,000 tokens, but that it knows all
    samples = better / "samples" / "colours.jsonl"
    told = [json.loads(line) for line in samples.read_text().splitlines()]
    told = [line | {"scores": {**line["scores"], "acc": 1.0}} for line in told]
    samples.write_text("".join(json.dumps(line) + "\n" for line in told))
    record = json.loads((better / "results.json").read_text())
    score = record["results"][name]
    (better / "results.json").write_text(json.dumps(record | {"step": 1, "results": {**record["results"], name: 1.0}}))
    monkeypatch.setenv(SETTING, f"better={better.parent} same={run / 'evaluations'}")
    assert evaluate(run) == 0
    [alert] = alerts(run)
    assert alert.startswith(f"step 10 is behind better: {name} {score:.4f} beside 1.0000 (95 % of the difference: -")
    ours = [(place, pytest.approx(score)) for place in (5000, 10000)]
    assert [(place, value) for place, of, value in points(run, "evaluations_by_tokens") if of == name] == ours
    assert (run / "evaluations" / "scores.png").exists()
    assert list(json.loads((run / "evaluations" / "behind.json").read_text())["same"].values()) == [{}, {}]
