"""`python -m evaluation watch`: each export once, whatever kills it; the reference beside it, warnings of what is behind."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import alert_channel
import pytest
import watcher_process
from evaluation_parts import COLOURS, NAME, Write, write_samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conversion.watching import sole_worker
from evaluation import report
from evaluation import watch as watching
from evaluation.__main__ import main
from evaluation.reference import Reference, draw
from evaluation.scalars import written
from evaluation.suite import load_suite

SCORES = {20: 0.5, 40: 0.5, 60: 0.75}


def alerts(run: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "alerts.jsonl").read_text().splitlines()]


def drawn(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def scores_of(share: float, step: int, suite: Any, tokens: int | None = None) -> dict[str, Any]:
    """A results.json in which that share of questions was right."""
    return {
        "step": step,
        "tokens": tokens,
        "results": {NAME: share, "eval/task/nothing": float("nan")},
        "intervals": {NAME: [share - 0.05, share + 0.05]},
        "chance": {NAME: 0.25},
        "higher_is_better": {NAME: True},
        "statistics": {NAME: "mean"},
        "not_run": {},
        "suite": suite.model_dump(mode="json", exclude_none=True),
    }


def write_result(folder: Path, record: dict[str, Any], samples: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    if samples:
        right = int(200 * record["results"][NAME])
        write_samples(folder, [{"acc": 1.0}] * right + [{"acc": 0.0}] * (200 - right))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with exports of three steps, and one that is being made."""
    for name in ("step_20", "step_40", "step_60", "step_80.partial", ".step_80.partial-1"):
        (tmp_path / "run" / "hf" / name).mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are evaluated, each with the score of SCORES, in this process."""
    steps = []

    def score(model: Path, suite: Any, asked: Any, output: Path) -> dict[str, Any]:
        steps.append(step := int(model.name.removeprefix("step_")))
        if not model.is_dir():
            raise OSError("it went")
        write_result(output, record := scores_of(SCORES[step], step, suite, 1000 * step))
        return record

    def call(_: Any, function: Any, *arguments: Any, threads: int, stop: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(report, "draw", lambda *given: None)  # tested below
    monkeypatch.setattr(watching, "_score", score)
    monkeypatch.setattr(watching.background, "call", call)
    return steps


@pytest.mark.slow  # libraries are loaded anew
def test_each_export_is_evaluated_once_also_by_a_watcher_that_was_killed(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    write_task("colours", COLOURS)
    suite, run, log = write_suite([{"name": "colours"}]), tmp_path / "run", tmp_path / "log"
    for step in (20, 40):
        shutil.copytree(plain_model, run / "hf" / f"step_{step}")
    results = run / "evaluations" / "suite"
    killed = watcher_process.start(log, run, "--suite", suite)
    until = time.monotonic() + 240
    while not list(results.glob("step_20.partial-*")) and not (results / "step_20").exists():
        assert killed.is_alive() and time.monotonic() < until, log.read_text()
        time.sleep(0.01)
    killed.kill()
    killed.join()

    assert watcher_process.watch(log, run, "--suite", suite, "--once") == 0, log.read_text()
    assert sorted(path.name for path in results.glob("step*")) == ["step_20", "step_40"]
    name = "eval/colours/acc"
    both = [json.loads((results / f"step_{step}" / "results.json").read_text()) for step in (20, 40)]
    points = [(record["step"], pytest.approx(record["results"][name])) for record in both]
    assert drawn(run / "tensorboard" / "evaluations", name) == points
    assert both[0]["device"] == "cpu" and (results / "scores.png").read_bytes().startswith(b"\x89PNG")

    kept = [path for path in run.rglob("*") if path.is_file() and path.suffix not in (".lock", ".png")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert watcher_process.watch(log, run, "--suite", suite, "--once") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_a_kill_left_undone_is_made_up_for(run: Path, asked: list[int], write_suite: Write) -> None:
    suite = write_suite([{"name": "task"}])
    (run / "evaluations" / "suite" / "step_20.partial-7").mkdir(parents=True)
    assert main(["watch", str(run), "--suite", str(suite), "--once"]) == 0
    assert asked == [20, 40, 60] and not list(run.rglob("*.partial-7"))
    shutil.rmtree(run / "tensorboard")  # as if killed between results and TensorBoard
    assert main(["watch", str(run), "--suite", str(suite), "--once"]) == 0
    assert asked == [20, 40, 60]
    assert drawn(run / "tensorboard" / "evaluations", NAME) == [(20, 0.5), (40, 0.5), (60, 0.75)]
    assert drawn(run / "tensorboard" / "evaluations_by_tokens", NAME) == [(20000, 0.5), (40000, 0.5), (60000, 0.75)]
    assert len(written(run / "tensorboard" / "evaluations")) == 3, "what is no number is not drawn"


def test_a_step_that_was_exported_anew_after_a_rollback_is_evaluated_anew(
    run: Path, asked: list[int], write_suite: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, records = write_suite([{"name": "task"}]), run / "hf" / "export.jsonl"
    records.write_text('{"event": "exporting", "step": 40, "checkpoint": "first", "revision": ""}\n')
    assert main(["watch", str(run), "--suite", str(suite), "--once"]) == 0
    with records.open("a") as file:
        file.write('{"event": "exporting", "step": 40, "checkpoint": "second", "revision": ""}\n')
        file.write('{"event": "failed", "step": 60, "checkpoint": "", "reason": "", "error": ""}\n')
    SCORES[40], before = 0.625, SCORES[40]
    try:
        assert main(["watch", str(run), "--suite", str(suite), "--once"]) == 0
    finally:
        SCORES[40] = before
    assert asked == [20, 40, 60, 40]
    assert "step 40 was saved and exported again since it was evaluated" in capsys.readouterr().out
    assert (40, NAME, 0.625) in written(run / "tensorboard" / "evaluations")


def test_gpus_are_left_to_training_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> str:
        return str(watching._without_gpus(os.environ.get, "CUDA_VISIBLE_DEVICES"))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert seen() == "7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert seen() == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # so that it is put back as it was


def test_the_runs_end_and_its_last_export_are_waited_for(
    run: Path, asked: list[int], write_suite: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "alerts.jsonl").write_text('{"event": "done"}\n')
    waited = []

    def pause(seconds: float, stop: Any) -> None:
        waited.append(seconds)
        (run / "hf" / "step_80.partial").rename(run / "hf" / "step_80")

    monkeypatch.setitem(SCORES, 80, 0.5)
    monkeypatch.setattr(watching, "to_be_exported", lambda run: {80} - {int("step_80" in p.name) * 80 for p in exports(run)})
    monkeypatch.setattr("conversion.watching.pause", pause)
    assert main(["watch", str(run), "--suite", str(write_suite([{"name": "task"}])), "--every", "7"]) == 0
    assert waited == [7] and asked == [20, 40, 60, 80]


def exports(run: Path) -> list[Path]:
    return [path for path in (run / "hf").glob("step_*") if path.suffix != ".partial"]


# --- beside a reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [True, False], ids=["paired", "interval"])
def test_a_run_that_falls_behind_another_at_the_same_tokens_is_warned_of_once(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write, capsys: pytest.CaptureFixture[str], samples: bool
) -> None:
    path = write_suite([{"name": "task"}])
    suite = load_suite(path)
    for step, tokens, share in ((1, 20_100, 0.5), (2, 40_100, 0.75), (3, 61_000, 0.9)):  # the last is no neighbour of 60,000
        write_result(tmp_path / "other" / f"step_{step}", scores_of(share, step, suite, tokens), samples)
    command = ["watch", str(run), "--suite", str(path), "--once", "--reference", f"wide={tmp_path / 'other'}"]
    assert main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(said) == 1 and f"step 40: behind wide: {NAME} 0.5000" in said[0] and "beside 0.7500" in said[0]
    assert ("of the difference: -0.3" in said[0]) == samples
    beside = run / "tensorboard" / "evaluations_by_tokens" / "reference" / "wide"
    assert drawn(beside, NAME) == [(20_100, 0.5), (40_100, 0.75), (61_000, pytest.approx(0.9))]
    [alert] = alerts(run)
    assert alert["event"] == "behind" and alert["text"].startswith(f"step 40 is behind wide: {NAME} 0.5000 ")
    assert main(command) == 0
    assert "WARNING" not in capsys.readouterr().out and alerts(run) == [alert], "told already"


def test_what_is_behind_goes_to_the_webhook(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_suite([{"name": "task"}])
    write_result(tmp_path / "other" / "step_20", scores_of(0.9, 20, load_suite(path)))
    with alert_channel.listening() as channel:
        monkeypatch.setenv("CHANNEL", channel.url)
        command = ["watch", str(run), "--suite", str(path), "--once", "--reference", f"wide={tmp_path / 'other'}"]
        assert main([*command, "--webhook", "CHANNEL"]) == 0
        [(_, post)] = channel.posts
    assert post["text"].endswith(f"behind: {alerts(run)[0]['text']}") and post["text"].startswith("run on ")


def test_several_references_are_compared_and_drawn_by_name(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pictures = write_suite([{"name": "task"}]), []
    for name in ("wide", "deep"):
        write_result(tmp_path / name / "step_20", scores_of(0.9, 20, load_suite(path)))
    (tmp_path / "paper.json").write_text(json.dumps({NAME: 0.875}))
    given = [f"wide={tmp_path / 'wide'}", f"deep={tmp_path / 'deep'}", f"paper={tmp_path / 'paper.json'}"]
    monkeypatch.setattr(report, "draw", lambda *all_of: pictures.append([one.name for one in all_of[2]]))
    command = ["watch", str(run), "--suite", str(path), "--once"]
    assert main([*command, *(word for one in given for word in ("--reference", one))]) == 0
    assert [alert["text"].partition(":")[0] for alert in alerts(run)] == ["step 20 is behind wide", "step 20 is behind deep"]
    assert pictures[-1] == ["wide", "deep", "paper"]
    for name in ("wide", "deep", "paper"):
        assert drawn(run / "tensorboard" / "evaluations" / "reference" / name, NAME)


def test_scores_that_are_lists_are_compared_and_those_without_statistic_left_out(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write
) -> None:
    """IFEval's by instruction, and F1's pairs, which look like log-likelihoods and units."""
    inst, f1 = "eval/task/inst", "eval/task/f1"
    path = write_suite([{"name": "task"}])
    for folder, followed in ((run / "evaluations" / "suite", False), (tmp_path / "other", True)):
        record = scores_of(0.5, 20, load_suite(path)) | {"statistics": {inst: "share"}, "intervals": {}}
        write_result(folder / "step_20", record | {"results": {inst: 0.25 + 0.5 * followed, f1: 0.5 * followed}}, samples=False)
        write_samples(folder / "step_20", [{"inst": [True, followed, followed, False], "f1": [1, int(followed)]}] * 50)
    for step in (40, 60):
        shutil.rmtree(run / "hf" / f"step_{step}")
    assert main(["watch", str(run), "--suite", str(path), "--once", "--reference", f"wide={tmp_path / 'other'}"]) == 0
    [alert] = alerts(run)
    assert f"{inst} 0.2500 beside 0.7500" in alert["text"] and f1 not in alert["text"] and not asked


def test_without_tokens_the_same_step_is_compared(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_suite([{"name": "task"}])
    write_result(tmp_path / "other" / "step_20", scores_of(0.9, 20, load_suite(path)))
    assert main(["watch", str(run), "--suite", str(path), "--once", "--reference", f"wide={tmp_path / 'other'}"]) == 0
    assert capsys.readouterr().out.count("WARNING: step 20: behind wide") == 1


def test_published_scores_are_a_level_that_no_step_is_behind(
    run: Path, asked: list[int], tmp_path: Path, write_suite: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "published.json").write_text(json.dumps({NAME: 0.875, "eval/other/acc": 0.5}))
    suite, reference = write_suite([{"name": "task"}]), f"paper={tmp_path / 'published.json'}"
    assert main(["watch", str(run), "--suite", str(suite), "--once", "--reference", reference]) == 0
    assert drawn(run / "tensorboard" / "evaluations" / "reference" / "paper", NAME) == [(20, 0.875), (40, 0.875), (60, 0.875)]
    assert "WARNING" not in capsys.readouterr().out


def test_the_picture_holds_both(tmp_path: Path, write_suite: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    plotted, plot = [], Axes.plot

    def noted(self: Axes, places: Any, values: Any, *style: Any, label: str) -> Any:
        plotted.append((label, list(places), list(values)))
        return plot(self, places, values, *style, label=label)

    monkeypatch.setattr(Axes, "plot", noted)
    suite = load_suite(write_suite([{"name": "task"}]))
    ours = [scores_of(share, step, suite, tokens) for share, step, tokens in ((0.5, 20, 200), (0.75, 40, 400))]
    draw("mine", ours, [Reference("paper", level={NAME: 0.875})], tmp_path / "scores.png")
    assert [line for line in plotted if line[1]] == [
        ("mine", [200, 400], [0.5, 0.75]),
        ("paper", [200, 400], [0.875, 0.875]),
        ("mine", [200, 400], [pytest.approx(float("nan"), nan_ok=True)] * 2),
    ]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    plotted.clear()
    draw("mine", ours, [Reference("wide", [scores_of(0.5, 30, suite)])], tmp_path / "scores.png")
    assert [line[1] for line in plotted[:2]] == [[20, 40], [30]], "over steps, where a side does not know its tokens"


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_a_failed_evaluation_holds_up_no_other_and_is_tried_again_by_the_next_watcher(
    run: Path, write_suite: Write, capsys: pytest.CaptureFixture[str], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, tried, looks = watching._score, [], iter([[80], [80]])
    (run / "alerts.jsonl").write_text('{"event": "done"}\n')

    def broken(model: Path, *rest: Any) -> dict[str, Any]:
        if model.name == "step_40":
            tried.append(model.name)
            raise watching.UserError("the disk is full")
        return dict(score(model, *rest))

    suite = write_suite([{"name": "task"}])
    with monkeypatch.context() as patched:
        patched.setattr(watching, "_score", broken)
        patched.setattr(watching, "to_be_exported", lambda run: next(looks, []))
        patched.setattr("conversion.watching.pause", lambda seconds, stop: len(tried) == 1 or pytest.fail("tried again"))
        assert main(["watch", str(run), "--suite", str(suite)]) == 2
    assert "1 not evaluated: step_40: the disk is full; started again, watch tries again" in capsys.readouterr().err
    assert asked == [20, 60]
    assert main(["watch", str(run), "--suite", str(suite), "--once"]) == 0
    assert asked == [20, 60, 40]


def test_where_no_task_could_be_reached_there_is_nothing_to_draw(
    run: Path, asked: list[int], write_suite: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreached(model: Path, suite: Any, asked: Any, output: Path) -> dict[str, Any]:
        record = scores_of(0.5, 20, suite) | {"results": {}, "not_run": {"task": "no Hub"}}
        write_result(output, record, samples=False)
        return record

    monkeypatch.setattr(watching, "_score", unreached)
    monkeypatch.setattr(report, "draw", lambda *given: pytest.fail("a picture of nothing"))
    assert main(["watch", str(run), "--suite", str(write_suite([{"name": "task"}])), "--once"]) == 1
    assert "step 20: not run: task: no Hub" in capsys.readouterr().out and not (run / "tensorboard").exists()


def test_bad_input_is_one_sentence_and_nothing_is_written(
    run: Path,
    asked: list[int],
    plain_model: Path,
    tmp_path: Path,
    write_suite: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = write_suite([{"name": "task"}])

    def refused(sentence: str, run: Path, *more: str, suite: Path = suite) -> None:
        assert main(["watch", str(run), "--suite", str(suite), "--once", *more]) == 2
        assert sentence in capsys.readouterr().err
        assert not asked

    refused("is not a run's folder; give train.output_dir", plain_model)
    refused("is not there; give train.output_dir", tmp_path / "nowhere")
    refused("no task has use: development", run, suite=write_suite([{"name": "task", "use": "report"}]))
    suite = write_suite([{"name": "task"}])
    refused("the reference published is not NAME=FOLDER or NAME=scores.json", run, "--reference", "published")
    refused("holds no */results.json; give a folder that watch or run filled", run, "--reference", f"a={tmp_path}")
    (tmp_path / "strange" / "a").mkdir(parents=True)
    (tmp_path / "strange" / "a" / "results.json").write_text('{"results": {}, "step": 1}')
    refused(
        "has no chance, higher_is_better, intervals, tokens; give results of", run, "--reference", f"a={tmp_path / 'strange'}"
    )
    (tmp_path / "scores.json").write_text('{"eval/task/acc": "high"}')
    refused("cannot be read (could not convert string to float", run, "--reference", f"a={tmp_path / 'scores.json'}")
    paper = tmp_path / "paper.json"
    paper.write_text("{}")
    twice = ["--reference", f"a={paper}", "--reference", f"a={paper}"]
    refused("2 references are named a, and scores are drawn by name; give each one of its own", run, *twice)
    refused("--webhook NO_SUCH: not set in the environment; export NO_SUCH=https://... first", run, "--webhook", "NO_SUCH")
    monkeypatch.setenv("CHANNEL", "ftp://host")
    refused("the webhook: webhook='ftp://ho'... is not an http or https URL", run, "--webhook", "CHANNEL")
    with sole_worker(run / "evaluations" / "suite" / "watch.lock", "a test"):
        refused("has a watcher already", run)
    write_result(run / "evaluations" / "suite" / "step_20", scores_of(0.5, 20, load_suite(suite, ["seed=3"])))
    refused("was scored with other settings than", run)
