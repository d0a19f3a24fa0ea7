"""A real sweep of two runs: two ranks train, exports are verified, lm-eval scores; a second call finishes a killed one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ablation_parts import commands_with
from evaluation_parts import COLOURS, Write
from tiny_runs import QUICKSTART, REPOSITORY, tiny_overrides

from evaluation.ablations import trainer
from evaluation.ablations.sweep import Run
from evaluation.suite import load_suite
from smol_config import mapping_to_yaml, merge_files

STEPS = 60


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_half_way_is_finished_by_the_same_command(
    corpus: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    write_task("colours", COLOURS)
    suite = write_suite([{"name": "colours"}])
    overrides = [
        *tiny_overrides(corpus, tmp_path / "elsewhere"),
        f"data.stages.0.steps={STEPS - 4}",
        "checkpoint.every_steps=5",
    ]
    (tmp_path / "baseline.yaml").write_text(mapping_to_yaml(merge_files(QUICKSTART, overrides)))
    sweep = {
        "baseline": "baseline.yaml",
        "output": str(tmp_path / "sweep"),
        "changes": [{"name": "mqa", "overrides": ["model.num_query_groups=1"]}],
        "seeds": {"baseline": [6], "changes": [6]},
        "suite": suite.name,
        "processes": 2,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "evaluation", "ablate", str(tmp_path / "sweep.yaml")]
    baseline, change = (tmp_path / "sweep" / "runs" / f"{name}-seed6" for name in ("baseline", "mqa"))

    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        while not (change / "iter_0000005" / "COMPLETE").exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.1)
        first.kill()
        first.wait()
    while commands_with(tmp_path):  # its ranks hear of it, save and end
        time.sleep(0.1)
    whole = (baseline / f"iter_{STEPS:07d}" / "COMPLETE").stat().st_mtime_ns
    started = json.loads((change / "alerts.jsonl").read_text().splitlines()[0])
    assert started["event"] == "started" and not (tmp_path / "sweep" / "results.json").exists()

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (change / "train.log").read_text()
    assert (baseline / f"iter_{STEPS:07d}" / "COMPLETE").stat().st_mtime_ns == whole, "it was not trained again"
    events = [json.loads(line)["event"] for line in (change / "alerts.jsonl").read_text().splitlines()]
    assert events[-1] == "done" and "resumed" in events
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [(run["arm"], run["state"], run["devices"]) for run in results["runs"]] == [
        ("baseline", "done", 2),
        ("mqa", "done", 2),
    ]
    assert results["runs"][1]["parameters"] < results["runs"][0]["parameters"]
    for run in results["runs"]:
        assert {"eval/loss/code", "eval/loss/docs", "eval/colours/acc"} <= run["scores"].keys()
        assert json.loads((Path(run["folder"]) / "hf" / f"step_{STEPS}" / "parity.json").read_text())["passed"]
        steps = [json.loads(line)["step"] for line in (Path(run["folder"]) / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, STEPS + 1)), "each step once"
    assert results["higher_is_better"]["eval/colours/acc"] and not results["higher_is_better"]["eval/loss/code"]
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert not commands_with(tmp_path), "no trainer is left behind"

    sweep["suite_overrides"] = ["seed=1"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    other = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (
        other.returncode == 2 and "scores was made with another suite; move it away to have the run scored anew" in other.stderr
    )


@pytest.mark.slow
def test_an_annealed_change_is_trained_on_its_candidate_from_the_trunks_end(corpus: Path, tmp_path: Path) -> None:
    overrides = [*tiny_overrides(corpus, tmp_path / "trunk"), "data.stages.1.weights={code: 0.75, docs: 0.25}"]
    (tmp_path / "trunk.yaml").write_text(mapping_to_yaml(merge_files(QUICKSTART, overrides)))
    trunk = [*trainer.launcher(1), "pretrain_smol.py", "--config", str(tmp_path / "trunk.yaml")]
    subprocess.run(trunk, cwd=REPOSITORY, check=True, capture_output=True)
    stages = [
        {"name": "running", "steps": 1, "weights": {"code": 0.75, "docs": 0.25}},
        {"name": "anneal", "steps": 4, "keep": 0.4, "weights": {"code": 0.75, "docs": 0.25}},
    ]
    annealed = {
        "base": "trunk.yaml",
        "start_from": {"checkpoint": str(tmp_path / "trunk"), "optimizer": True, "data_position": False},
        "data": {"stages": stages},
        "optim": {"schedule": {"warmup_steps": 0, "decay_steps": 4}},
    }
    (tmp_path / "annealed.yaml").write_text(yaml.safe_dump(annealed))
    sweep = {
        "baseline": "annealed.yaml",
        "output": str(tmp_path / "sweep"),
        "changes": [{"name": "docs", "overrides": ["data.stages.1.weights={docs: 1}"]}],
        "seeds": {"baseline": [6], "changes": [6], "settings": ["data.seed"]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "evaluation", "ablate", str(tmp_path / "sweep.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [(run["arm"], run["state"], run["tokens"]) for run in results["runs"]] == [
        (name, "done", 5 * 8 * 64) for name in ("baseline", "docs")
    ]
    assert {"eval/loss/code", "eval/loss/docs"} <= results["comparisons"]["docs"].keys()
    losses = {}
    for name in ("baseline", "docs"):
        folder = tmp_path / "sweep" / "runs" / f"{name}-seed6"
        losses[name] = [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert f"started from {tmp_path / 'trunk'}" in (folder / "train.log").read_text()
    assert losses["baseline"][0] == losses["docs"][0] != losses["baseline"][1] != losses["docs"][1], "one step on the same"


@pytest.mark.slow
def test_what_cannot_be_exported_or_scored_is_told(tmp_path: Path, write_suite: Write, write_task: Write) -> None:
    write_task("colours", COLOURS)
    suite = load_suite(write_suite([{"name": "colours"}]))
    run = Run("arm", 6, tmp_path / "run", {})
    run.folder.mkdir()
    assert trainer.score(run, STEPS, suite).startswith("not exported: error: ")
    export, scores = run.folder / "hf" / f"step_{STEPS}", run.folder / "scores"
    export.mkdir()
    assert trainer.score(run, STEPS, suite).startswith(f"not scored: {export} has no config.json; give a Hugging Face folder")
    scores.mkdir()
    (scores / "results.json").write_text(json.dumps({"not_run": {"far": "no Hub", "farther": "none either"}}))
    assert trainer.score(run, STEPS, suite) == "far not run: no Hub; farther not run: none either"
