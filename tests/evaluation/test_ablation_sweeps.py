"""`ablate` from a sweep's file to its report, with a trainer that leaves a run's files in no time (ablation_parts.py)."""

import base64
import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from ablation_parts import Lab, planned
from tiny_runs import REPOSITORY

from evaluation.ablations import trainer
from evaluation.ablations.sweep import Arm
from evaluation.suite import Suite
from smol_config import UserError, load_mapping


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    monkeypatch.setattr(trainer, "launcher", lambda processes: [sys.executable, str(tmp_path / "trainer.py")])
    monkeypatch.setattr(trainer, "plan", planned)
    monkeypatch.setattr(trainer, "LOOK_SECONDS", 0.05)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    return lab


def test_a_sweep_is_trained_compared_and_told(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """A change that is noise, one that is worse, one that diverges and one whose data is missing."""
    lab.write({"same": 0.0041, "low": 0.002, "wild": 9, "broken": 8}, seeds={"baseline": [6, 7, 8], "changes": [6, 8]})
    assert lab.ablate() == 1, "one arm has failed"
    assert lab.starts[:5] == ["baseline-seed6", "same-seed6", "low-seed6", "wild-seed6", "broken-seed6"], "seed by seed"
    results = lab.results()
    states = {(run["arm"], run["seed"]): run["state"] for run in results["runs"]}
    assert {arm: state for (arm, seed), state in states.items() if seed == 6} == {
        **dict.fromkeys(("baseline", "same", "low"), "done"),
        "wild": "diverged",
        "broken": "failed",
    }
    verdicts = {arm: found.get("eval/loss/code", {}).get("verdict") for arm, found in results["comparisons"].items()}
    assert verdicts == {"same": "within noise", "low": "worse", "wild": None, "broken": None}
    low = results["comparisons"]["low"]["eval/loss/docs"]
    assert low["difference"] == pytest.approx(0.2, abs=0.005) and low["baseline"] < low["change"]
    costs = {run["arm"]: run.get("gpu_hours") for run in results["runs"]}
    assert costs["low"] == pytest.approx(30 * 512 / 8000 * 2 / 3600) and costs["baseline"] is None
    said = capsys.readouterr().out
    assert "low     loss/code" in said and "within noise" in said
    assert "wild, seed 6: diverged: the loss of step 30 is not a number" in said
    assert "broken, seed 8: failed: error: data.datasets.code: nothing there" in said
    assert "about 0.2 fall outside it by chance" in said
    page, markdown = ((lab.output / name).read_text() for name in ("report.html", "table.md"))
    assert page.count("data:image/png;base64,") == 2 and "http" not in page and "<td class='worse'>worse</td>" in page
    for name in ("losses.png", "differences.png"):
        assert base64.b64encode((lab.output / name).read_bytes()).decode() in page
    hours = {line.split(" | ")[0]: line.split(" | ")[6] for line in markdown.partition("\n\n")[0].splitlines()}
    assert (hours["| low"], hours["| baseline"]) == ("0.00249 GPU", "0.00371"), "whose devices its log calls none"
    assert "<tr><td>low, seed 8</td><td>done</td>" in page and "<td>2</td><td>0.00107 GPU</td></tr>" in page
    assert "| wild | 2 diverged |" in markdown and "optim.learning_rate=0.002" in page

    assert lab.ablate() == 1
    assert lab.starts[11:] == ["broken-seed6", "broken-seed8"], "only what failed is tried again"


def test_a_run_goes_on_as_long_as_it_saves_and_a_stopped_one_stays(lab: Lab) -> None:
    lab.write({"again": 0.003, "enough": 0.005}, seeds={"baseline": [6], "changes": [6]})
    assert lab.ablate() == 0
    assert lab.starts == ["baseline-seed6", "again-seed6", "again-seed6", "enough-seed6"]
    states = {run["arm"]: (run["state"], run["reason"]) for run in lab.results()["runs"]}
    assert states["again"] == ("done", "")
    assert states["enough"] == ("stopped", "at step 10 of 30, saved; exit code 93")
    assert lab.results()["comparisons"]["again"]["eval/loss/code"]["verdict"] == "noise unknown"


def test_a_signal_lets_the_run_save_and_the_next_call_goes_on(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.write({"cut": 0.006, "after": 0.0041}, seeds={"baseline": [6], "changes": [6]})
    assert lab.ablate() == 1
    assert "stopped, and saved; the same command goes on" in capsys.readouterr().out
    assert not (lab.output / "results.json").exists() and lab.starts == ["baseline-seed6", "cut-seed6"]
    assert lab.ablate() == 0
    assert lab.starts == ["baseline-seed6", "cut-seed6", "cut-seed6", "after-seed6"]


def test_an_ordered_sweep_goes_on_from_each_winner(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.write({"first": 0.0042, "second": 0.0043}, ordered=True, seeds={"baseline": [6, 7], "changes": [6]})
    assert lab.ablate("--promote", "first") == 2
    assert "--promote first: none of its runs is finished; let the sweep train it first" in capsys.readouterr().err
    assert lab.ablate() == 0
    assert {run["arm"] for run in lab.results("1_first")["runs"]} == {"baseline", "first"}
    assert lab.ablate("--promote", "frist") == 2
    assert "--promote 'frist' is no arm of round 1; did you mean 'first'?" in capsys.readouterr().err
    assert lab.ablate("--promote", "first") == 0
    assert "round 2: second on first" in capsys.readouterr().out
    winner = lab.output / "promoted" / "1_first.yaml"
    assert "base: ../../baseline.yaml" in winner.read_text()
    assert load_mapping(winner)["optim"]["learning_rate"] == 0.0042

    before = len(lab.starts)
    assert lab.ablate() == 0
    assert lab.starts[before:] == ["second-seed6", "first-seed7"], "the winner's first seed was trained in its own round"
    assert lab.results("2_second")["baseline"] == "first"
    assert lab.ablate("--promote", "first") == 0, "the change is turned down"
    assert (lab.output / "promoted" / "2_first.yaml").is_file()
    assert lab.ablate("--promote", "first") == 2
    assert "the last round was decided before" in capsys.readouterr().err
    assert lab.ablate() == 0 and "decided: " in capsys.readouterr().out


def test_a_run_that_cannot_be_scored_is_told_and_the_report_has_the_rest(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory that runs out raises on a GPU, and has the system kill the process on a CPU."""

    def run_out(export: Path, suite: Suite, asked: object, output: Path, subset: None) -> None:
        (output.parent / "scores.partial-7").mkdir()
        if "low" in str(export):
            os.kill(os.getpid(), signal.SIGKILL)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 TiB")

    suite = REPOSITORY / "evaluation" / "suites" / "offline.yaml"
    lab.write({"low": 0.002}, suite=str(suite), seeds={"baseline": [6], "changes": [6]})
    for name in ("baseline", "low"):
        (lab.output / "runs" / f"{name}-seed6" / "hf" / "step_30").mkdir(parents=True)
    monkeypatch.setattr("evaluation.run.run", run_out)
    for _ in range(2):  # what the first left does not hinder the second
        assert lab.ablate() == 1
    reasons = {run["arm"]: run["reason"] for run in lab.results()["runs"]}
    assert reasons["baseline"] == "not scored: OutOfMemoryError: CUDA out of memory. Tried to allocate 4 TiB"
    assert reasons["low"].startswith("not scored: its process was killed (signal 9), as the system does when memory runs out")
    assert "eval/loss/code" in lab.results()["comparisons"]["low"], "what the trainer found is compared"
    assert "low, seed 6: done: not scored: its process was killed" in capsys.readouterr().out
    assert (lab.output / "report.html").is_file()


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "unknown setting": ({"seed": [1]}, "seed: unknown key; did you mean 'seeds'"),
    "unknown recipe": ({"recipe": "stf"}, "recipe=stf is no recipe of post-training (did you mean 'sft'?); leave it out"),
    "recipe of another kind": ({"recipe": "grpos"}, "(did you mean 'grpo'?)"),
    "no baseline": ({"baseline": "none.yaml"}, "none.yaml cannot be read"),
    "twice": (
        {"changes": [{"name": "a", "overrides": ["train.seed=1"]}] * 2},
        "changes: names ['a'] stand more than once; give every change its own name",
    ),
    "baseline's name": (
        {"changes": [{"name": "baseline", "overrides": ["train.seed=1"]}]},
        "changes: 'baseline' is the baseline's name; choose another",
    ),
    "one seed twice": ({"seeds": {"baseline": [6, 6]}}, "seeds.baseline: [6, 6] has a seed twice"),
    "suite of reports": ({"suite": "report.yaml"}, "report.yaml has no task with use: development"),
    "nothing to compare": ({"baseline": "no_held_out.yaml"}, "no data.held_out and no suite, so nothing would be compared"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    case: str, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, expected = FAULTS[case]
    (lab.folder / "report.yaml").write_text("tasks: [{name: sums, use: report}]\n")
    (lab.folder / "no_held_out.yaml").write_text("base: baseline.yaml\ndata: {held_out: null}\n")
    lab.write({"low": 0.002}, **settings)
    assert lab.ablate() == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert not lab.output.exists()


def test_the_trainer_itself_plans_every_arm_and_its_words_are_passed_on(tmp_path: Path) -> None:
    base = Lab(tmp_path).folder / "baseline.yaml"
    good = Arm("good", base, ("model.num_query_groups=1",), ())
    assert trainer.plan(good) == planned(good)
    with pytest.raises(
        UserError, match=r"^odd: .*num_attention_heads=4 is not divisible by num_query_groups=3; choose a divisor$"
    ):
        trainer.plan(Arm("odd", base, ("model.num_query_groups=3",), ()))


def test_a_run_that_was_begun_with_other_settings_is_refused(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.ablate("seeds.baseline=[6]") == 0
    lab.write({"low": 0.0021})
    assert lab.ablate("seeds.baseline=[6]") == 2
    said = capsys.readouterr().err
    assert "low-seed6 was begun with other settings than the sweep now has (optim.learning_rate: 0.002, now 0.0021)" in said
    with (lab.output / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lab.write({"low": 0.002})
        assert lab.ablate("seeds.baseline=[6]") == 2
    assert "is in use by another call of ablate; wait until it has ended" in capsys.readouterr().err
    lab.output.rename(lab.folder / "moved")
    assert lab.ablate("seeds.baseline=[6]", f"output={lab.folder / 'moved'}") == 0, "a sweep's folder may be moved"
    assert lab.starts == ["baseline-seed6", "low-seed6"]


# --- on a cluster ------------------------------------------------------------------------------------------------------------


def test_on_a_cluster_every_run_that_is_not_over_is_a_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.write({"low": 0.002}, seeds={"baseline": [6], "changes": [6]})
    monkeypatch.setenv("SMOL_ENV", str(lab.folder / "env.sh"))
    assert lab.ablate("--slurm") == 2
    assert "baseline, seed 6: " in capsys.readouterr().err and "env.sh is not there"

    submit = lab.folder / "repository" / "slurm" / "submit.sh"
    submit.parent.mkdir(parents=True)
    calls = lab.folder / "calls"
    submit.write_text(f'echo "$@" >>{calls}\necho "job 7: $2 of $3"\necho more\n')
    monkeypatch.setattr(trainer, "REPOSITORY", lab.folder / "repository")
    assert lab.ablate("--slurm") == 1
    configs = [str(lab.output / "runs" / f"{name}-seed6" / "config.yaml") for name in ("baseline", "low")]
    asked = [f"--once pretrain {config}" for config in configs]
    assert calls.read_text().splitlines() == asked
    assert f"low, seed 6: job 7: pretrain of {configs[1]}\n" in capsys.readouterr().out
    assert {run["state"] for run in lab.results()["runs"]} == {"waiting"}
    assert lab.ablate() == 0, "as if its job had done it"
    (lab.output / "runs" / "low-seed6" / "iter_0000030" / "COMPLETE").unlink()
    (lab.output / "runs" / "low-seed6" / "alerts.jsonl").write_text('{"event": "crashed", "text": "rank 1"}\n')
    assert lab.ablate("--slurm") == 1
    assert calls.read_text().splitlines() == [*asked, asked[1]], "what failed, and not what is done"
