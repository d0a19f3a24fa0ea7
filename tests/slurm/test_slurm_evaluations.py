"""Evaluations of checkpoints: submitted once, whoever dies in between; results in TensorBoard at their step.

On the real Slurm where it matters who knows what, with a stand-in for sbatch where only the rules do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from evaluated_run import Queue, evaluate, export, points, result, tell
from ranks import Ranks
from s3_double import s3_double
from slurm_cluster import Cluster, Submitter, fake_program, wait_until
from tiny_runs import QUICKSTART, REPOSITORY, tiny_overrides

from conversion.export_records import Records
from conversion.upload.s5cmd import find_program
from evaluation import scalars
from slurm import evaluation_jobs, evaluations
from smol_train.checkpoint_folder import MARKER, STATE, digest_of, folder_name, note_path, whole_checkpoints

# --- the rules ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_what_is_exported_and_uploaded_is_submitted_once_oldest_first(
    run: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for step in (10, 5):
        export(run, step)
    export(run, 15, uploaded=False)
    (run / "hf" / "step_20.partial").mkdir()
    export(run, 25)
    Records(run / "hf").add("failed", 25, checkpoint="", reason="not equal", error="ParityError")
    export(run, 30, content=" of a lost attempt")
    export(run, 30, uploaded=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CONF", "/slurm.conf")
    assert evaluate(run) == 0
    assert queue.submitted == ["step_5", "step_10"]
    queue.runs("1", "2")
    assert evaluate(run) == 0
    assert evaluate(run, uploads=False) == 0
    assert queue.submitted == ["step_5", "step_10", "step_15", "step_30"], "without uploads the export is enough"
    name = f"evaluate-run-step_5-{(digest_of(run / folder_name(5)) or '')[:8]}"
    first = queue.calls.read_text().splitlines()[0].split()
    assert {f"--job-name={name}", "--partition=low", "--time=10", "--account=lab", "--requeue"} <= set(first)
    assert first[-3] == "/code/slurm/evaluate_step.sh"
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "SLURM_CONF=/slurm.conf" in environment and not any(line.startswith("SLURM_JOB_ID") for line in environment)


def test_a_step_that_was_saved_again_after_a_rollback_is_evaluated_again(run: Path, queue: Queue) -> None:
    export(run, 5)
    assert evaluate(run) == 0
    result(run, 5, '{"results": {"eval/loss/x": 3.5}}')
    assert evaluate(run) == 0
    export(run, 5, content=" again")
    assert evaluate(run) == 0
    assert queue.submitted == ["step_5", "step_5"]
    result(run, 5, '{"results": {"eval/loss/x": 3.25}}')
    assert evaluate(run) == 0
    assert json.loads((run / "evaluations.jsonl").read_text()) == {"step": 5, "eval/loss/x": 3.25}
    assert points(run) == [(5, "eval/loss/x", 3.25), (5, "eval/loss/x", 3.5)]


def test_results_come_by_step_and_once_also_after_a_kill_in_between(
    run: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10):
        export(run, step)
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents.1.trainer").write_bytes(b"not ours")
    assert evaluate(run) == 0
    result(run, 10, '{"results": {"eval/loss/code": 2.5, "eval/loss/docs": NaN, "eval/x": null}}')
    add = scalars.add_missing

    def add_and_die(*given: Any) -> int:
        add(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(scalars, "add_missing", add_and_die)
    queue.runs("1")
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    assert not (run / "evaluations.jsonl").exists()
    monkeypatch.setattr(scalars, "add_missing", add)
    assert evaluate(run) == 0
    result(run, 5, '{"results": {"eval/loss/code": 3}}')
    assert evaluate(run) == 0
    assert evaluate(run) == 0
    assert points(run) == [(5, "eval/loss/code", 3.0), (10, "eval/loss/code", 2.5)], "each once"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert lines == [{"step": 5, "eval/loss/code": 3.0}, {"step": 10, "eval/loss/code": 2.5}]
    assert (run / "tensorboard" / "events.out.tfevents.1.trainer").read_bytes() == b"not ours"
    assert "step 5: eval/loss/code 3\n" in capsys.readouterr().out
    export(run, 15)
    result(run, 15, '{"eval/loss/code": 1}')
    assert evaluate(run) == 0
    assert 'step 15: no numbers; the command of SMOL_EVALUATE must write {"results"' in capsys.readouterr().out


def test_a_job_that_ends_without_a_result_has_failed_and_one_that_was_lost_is_submitted_again(
    run: Path, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10, 15):
        export(run, step)
    assert evaluate(run) == 0
    queue.queue = None
    assert evaluate(run) == 0, "Slurm does not answer"
    queue.runs("3")
    queue.states = {"1": "FAILED", "2": "PREEMPTED"}
    assert evaluate(run) == 2
    captured = capsys.readouterr()
    assert "hf/step_5 is NOT evaluated, and not tried again without --retry-failed: job 1 ended (FAILED)" in captured.out
    assert "1 not evaluated: step_5-" in captured.err and "; see " in captured.err
    assert "hf/step_10, was lost (PREEMPTED); it is submitted again" in captured.out
    assert queue.submitted == ["step_5", "step_10", "step_15", "step_10"]
    queue.runs("3", "4")
    assert evaluate(run, "--retry-failed") == 0
    assert queue.submitted[4:] == ["step_5"]


def test_an_sbatch_that_does_not_work_is_tried_again_when_it_is_known_that_nothing_came_of_it(
    run: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, 5)
    queue.refuses.touch()
    assert evaluate(run) == 0
    said = (
        "hf/step_5 is not submitted: sbatch: no partition; mend SMOL_EVALUATE_SBATCH if that is at fault; tried again in 60 s"
    )
    assert said in capsys.readouterr().out
    queue.refuses.unlink()
    assert evaluate(run) == 0 and queue.submitted == [], "a request may be on its way yet"
    monkeypatch.setattr(evaluation_jobs, "SETTLE_SECONDS", 0.0)
    assert evaluate(run) == 0 and queue.submitted == ["step_5"]
    monkeypatch.setenv("PATH", "/nowhere")
    export(run, 10)
    queue.runs("1")
    assert evaluate(run) == 0
    assert "is not submitted: sbatch does not answer (" in capsys.readouterr().out


def test_the_run_is_waited_for_to_its_last_result(run: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, 5)
    (run / folder_name(10)).mkdir()
    for name in (MARKER, STATE):
        (run / folder_name(10) / name).write_text("10")
    tell(run, "done")
    rounds = 0

    def next_round(seconds: float, stop: object) -> None:
        nonlocal rounds
        rounds += 1
        queue.runs("1", "2")
        if rounds == 1:
            result(run, 5, '{"results": {"eval/loss/x": 1}}')
        elif rounds == 2:
            export(run, 10)
        elif rounds == 4:
            result(run, 10, '{"results": {"eval/loss/x": 2}}')

    monkeypatch.setattr("conversion.watching.pause", next_round)
    assert evaluate(run, "--watch") == 0
    assert rounds == 4 and [step for step, *_ in points(run)] == [5, 10]


def test_a_configuration_that_cannot_be_read_ends_a_job_for_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluations.main(["no/such.yaml"]) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert evaluations.main(["no/such.yaml"]) == 93
    assert "config file no/such.yaml cannot be read" in capsys.readouterr().err


def test_a_second_job_for_the_same_result_does_nothing_and_half_a_result_is_none(tmp_path: Path) -> None:
    (tmp_path / "evaluate").write_text('#!/bin/sh\necho ran >>"$RAN"\necho "$1 $2 $3" >"$5"\n[ ! -e "$RAN.fail" ]\n')
    (tmp_path / "evaluate").chmod(0o755)
    environment = {
        **os.environ,
        "SMOL_EVALUATE": str(tmp_path / "evaluate"),
        "SMOL_CONFIG": "c.yaml",
        "RAN": str(tmp_path / "ran"),
    }

    def job(number: int) -> int:
        script = ["bash", str(REPOSITORY / "slurm" / "evaluate_step.sh"), "hf/step_5", str(tmp_path / "out" / "step_5.json")]
        return subprocess.run(script, env={**environment, "SLURM_JOB_ID": str(number)}, check=False).returncode

    (tmp_path / "ran.fail").touch()
    assert job(1) == 1 and not (tmp_path / "out" / "step_5.json").exists()
    (tmp_path / "ran.fail").unlink()
    assert job(2) == 0 and (tmp_path / "out" / "step_5.json").read_text() == "hf/step_5 --config c.yaml\n"
    assert job(3) == 0 and (tmp_path / "ran").read_text() == "ran\nran\n"


def test_an_evaluation_may_leave_a_folder_and_some_tasks_unreached(tmp_path: Path) -> None:
    evaluate = tmp_path / "evaluate"
    evaluate.write_text('#!/bin/sh\nmkdir "$5" && echo "$1" >"$5/results.json" && touch "$5/sample"\nexit $CODE\n')
    evaluate.chmod(0o755)

    def job(number: int, code: int) -> int:
        environment = {"SMOL_EVALUATE": str(evaluate), "SMOL_CONFIG": "c.yaml", "SLURM_JOB_ID": str(number), "CODE": str(code)}
        script = ["bash", str(REPOSITORY / "slurm" / "evaluate_step.sh"), "hf/step_5", str(tmp_path / "out" / "step_5.json")]
        return subprocess.run(script, env={**os.environ, **environment}, check=False).returncode

    assert job(1, code=2) != 0 and not (tmp_path / "out" / "step_5.json").exists()
    assert job(2, code=1) == 0
    assert (tmp_path / "out" / "step_5.json").read_text() == "hf/step_5\n"
    assert (tmp_path / "out" / "step_5" / "sample").exists(), "samples are kept beside it"


# --- on a real Slurm ---------------------------------------------------------------------------------------------------------

STAND_IN = """
# HF_DIR --config C --output FILE
echo "$(basename "$1") ${SLURM_RESTART_COUNT:-0}" >>"$SMOL_RUN/ran"
while [[ ! -e $SMOL_RUN/go ]]; do sleep 0.1; done
[[ ! -e $SMOL_RUN/fail ]] || exit 1
echo '{"results": {"eval/loss/x": 2}}' >"$5"
"""

KILLS = """
# sbatch whose caller is killed before or after Slurm has taken the job
[[ -e {moment} ]] || exec {sbatch} "$@"
[[ $(cat {moment}) != after ]] || {sbatch} "$@"
rm {moment}
kill -9 $PPID
"""


class Lab:
    """Evaluations on the lab cluster, from processes that can be killed."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        (self.run / "slurm" / "logs").mkdir(parents=True)
        sbatch = cluster.run("which", "sbatch").out.strip()
        fake_program(folder, "evaluate", STAND_IN)
        fake_program(folder, "sbatch", KILLS.format(moment=folder / "moment", sbatch=sbatch))

    def evaluate(self, *options: str) -> int:
        """As a process of its own, whose word counts at once that there is no such job."""
        code = "import sys; from slurm import evaluation_jobs, evaluations; evaluation_jobs.SETTLE_SECONDS = 0.0\n"
        settings = [str(QUICKSTART), *options, f"train.output_dir={self.run}"]
        outcome = self.cluster.run(
            sys.executable,
            "-c",
            f"{code}sys.exit(evaluations.main(sys.argv[1:]))",
            *settings,
            PATH=f"{self.folder / 'bin'}:{self.cluster.environment['PATH']}",
            SMOL_CODE=str(self.cluster.repository),
            SMOL_RUN=str(self.run),
            SMOL_CONFIG=str(QUICKSTART),
            SMOL_EVALUATE=str(self.folder / "bin" / "evaluate"),
            SMOL_EVALUATE_SBATCH="--partition=idle --time=5",
        )
        assert outcome.code in (0, 2, -9), outcome
        return outcome.code

    def ran(self) -> list[str]:
        return sorted((self.run / "ran").read_text().splitlines()) if (self.run / "ran").exists() else []


def test_a_submitter_killed_before_or_after_slurm_has_the_job_makes_one_of_each(cluster: Cluster, tmp_path: Path) -> None:
    lab = Lab(cluster, tmp_path)
    for step in (5, 10):
        export(lab.run, step)
        (tmp_path / "moment").write_text("after" if step == 5 else "before")
        assert lab.evaluate() == -9
        assert len(cluster.jobs()) == 1, "the second was not submitted yet"
    assert lab.evaluate() == 0
    assert lab.evaluate() == 0
    [first, second] = sorted(cluster.jobs(), key=int)
    assert cluster.field(first, "JobName").startswith("evaluate-run-step_5-")
    wait_until(lambda: len(lab.ran()) == 2, "they do not start")
    assert cluster.run("scontrol", "requeue", second).code == 0  # as preemption does
    wait_until(lambda: len(lab.ran()) == 3, "it does not start again")
    (lab.run / "go").touch()
    wait_until(lambda: not cluster.jobs(), "they do not end")
    assert lab.evaluate() == 0
    assert lab.ran() == ["step_10 0", "step_10 1", "step_5 0"]
    assert points(lab.run) == [(5, "eval/loss/x", 2.0), (10, "eval/loss/x", 2.0)]
    (lab.run / "fail").touch()
    export(lab.run, 15)
    assert lab.evaluate() == 0
    wait_until(lambda: not cluster.jobs(), "it does not end")
    assert lab.evaluate() == 2
    failed = json.loads((lab.run / "slurm" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert failed["event"] == "failed" and " ended (FAILED) without a result; see " in failed["reason"]


@pytest.mark.slow
def test_every_checkpoint_is_exported_uploaded_and_evaluated_on_the_cluster(
    cluster: Cluster, submit: Submitter, corpus: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*tiny_overrides(corpus, submit.run), "checkpoint.every_steps=5", "checkpoint.keep_last=9"]
    [trained] = ranks.run(jobs.train, 1, overrides=settings, save=True, evaluate=True)
    submit.overrides = [*settings, "checkpoint.upload=s3://bucket/runs"]
    submit.settings |= {"SMOL_CPU_CORES": "2", "SMOL_EVALUATE_SBATCH": "--partition=idle --time=10"}
    (submit.run.parent / "paper.json").write_text('{"eval/loss/code": 2}')
    submit.settings["SMOL_EVALUATE_REFERENCES"] = f"paper={submit.run.parent / 'paper.json'}"
    with s3_double() as s3:
        monkeypatch.setattr(cluster, "environment", cluster.environment | s3.environment)
        assert cluster.run(find_program(), "mb", "s3://bucket").code == 0
        s3.faults = {"iter_0000005": [503] * 3}
        tell(submit.run, "done")
        jobs_of = [submit.job(name, "--every", "2") for name in ("evaluate", "upload")]
        wait_until(lambda: note_path(submit.run, 10).exists(), f"nothing is uploaded: {submit.log()}")
        assert not (submit.run / "slurm" / "evaluations.jsonl").exists(), "nothing is exported yet"
        jobs_of.append(submit.job("export"))
        for job in jobs_of:
            assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    steps = [int(path.name.removeprefix("iter_")) for path in whole_checkpoints(submit.run)]
    lines = [json.loads(line) for line in (submit.run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == steps == [5, 6, 10]
    for name in ("code", "docs"):
        assert lines[-1][f"eval/loss/{name}"] == pytest.approx(
            trained["steps"][-1][f"eval/loss/{name}"], abs=0.01
        )  # bf16 export
    assert len(points(submit.run)) == 2 * len(steps)
    assert points(submit.run, "evaluations/reference/paper") == [(step, "eval/loss/code", 2.0) for step in steps]
    assert len(points(submit.run, "evaluations_by_tokens")) == 2 * len(steps), "exports know their tokens"
    noted = [json.loads(line) for line in (submit.run / "slurm" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["event"] for line in noted].count("submitted") == len(steps)
