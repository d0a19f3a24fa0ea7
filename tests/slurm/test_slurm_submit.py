"""submit.sh: bad input gets one sentence, exit code 2, and writes nothing; Slurm is asked for what env.sh says."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from slurm_cluster import SETTINGS, Cluster, Submitter, copy_repository
from tiny_runs import QUICKSTART, REPOSITORY

from slurm import run_folder
from smol_config import load
from smol_train.config import RunConfig


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A copy of the repository, and no cluster."""
    return Cluster(tmp_path_factory.mktemp("no_cluster"), copy_repository(tmp_path_factory.mktemp("copy")))


@pytest.fixture
def submit_elsewhere(elsewhere: Cluster, tmp_path: Path) -> Submitter:
    return Submitter(elsewhere, tmp_path)


FAULTS: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "nothing": ([], {}, ["JOB and CONFIG are needed"]),
    "no config": (["pretrain"], {}, ["JOB and CONFIG are needed"]),
    "unknown option": (["--dry", "pretrain", "C"], {}, ["--dry is no option", "--help"]),
    "unknown job": (["train", "C"], {}, ["JOB train is none of: ", " pretrain "]),
    "missing config": (["pretrain", "no/such.yaml"], {}, ["config file no/such.yaml cannot be read"]),
    "bad setting": (["pretrain", "C", "train.sed=1"], {}, ["train.sed: unknown key", "'seed'"]),
    "no layout for the ranks": (["pretrain", "C"], {"SMOL_NODES": "3"}, ["gpus=3 make 3 copies of the model"]),
    "no recipe": (["post_training", "SFT"], {}, ["recipe '' is unknown; known: grpo, mid, preference, sft", "behind --"]),
    "unknown recipe": (["post_training", "SFT", "--", "sftt"], {}, ["recipe 'sftt' is unknown; did you mean 'sft'?"]),
    "another recipe's": (["post_training", "SFT", "--", "preference"], {"MODEL": "x"}, ["preference: missing"]),
    "no batch for the ranks": (
        ["post_training", "SFT", "train.global_batch_size=3", "--", "sft"],
        {"MODEL": "x"},
        ["x 2 processes"],
    ),
    "unset setting": (["pretrain", "C"], {"SMOL_TIME": ""}, ["SMOL_TIME is not set in", "env.sh.example"]),
    "unknown way": (["pretrain", "C"], {"SMOL_REQUEUE": "yes"}, ["SMOL_REQUEUE=yes in", "neither requeue nor chain"]),
    "no python": (["pretrain", "C"], {"SMOL_PYTHON": "/no/python"}, ["SMOL_PYTHON=/no/python in", "is no program"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_input_is_refused(case: str, submit_elsewhere: Submitter) -> None:
    arguments, settings, expected = FAULTS[case]
    submit_elsewhere.settings |= settings
    files = {"C": str(QUICKSTART), "SFT": "configs/post_training/tiny/sft.yaml"}
    given = [files.get(word, word) for word in arguments]
    outcome = submit_elsewhere(*given, *(submit_elsewhere.overrides if "C" in arguments else []))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    for part in expected:
        assert part in outcome.err
    assert not submit_elsewhere.run.exists()


def test_without_settings_the_remedy_is_said(submit_elsewhere: Submitter) -> None:
    outcome = submit_elsewhere("pretrain", str(QUICKSTART), SMOL_ENV="")
    assert outcome.code == 2
    assert "slurm/env.sh is not there; copy slurm/env.sh.example to it" in outcome.err


def test_without_slurm_it_says_so(submit_elsewhere: Submitter, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "date", "dirname", "basename", "paste", "env"):
        (programs / name).symlink_to(str(shutil.which(name)))
    outcome = submit_elsewhere("pretrain", str(QUICKSTART), *submit_elsewhere.overrides, PATH=str(programs))
    assert outcome.code == 2
    assert outcome.err == "error: there is no sbatch here; run this on a login node of the cluster\n"
    assert not submit_elsewhere.run.exists()


def test_a_dry_run_prints_plan_and_command_and_writes_nothing(submit_elsewhere: Submitter) -> None:
    submit_elsewhere.settings |= {
        "SMOL_ACCOUNT": "lab",
        "SMOL_PARTITION": "gpu",
        "SMOL_QOS": "long",
        "SMOL_RESERVATION": "mine",
        "SMOL_GPUS_PER_NODE": "h100:1",
        "SMOL_SBATCH": "--exclusive --mem=0",
    }
    outcome = submit_elsewhere("--dry-run", "pretrain", str(QUICKSTART), *submit_elsewhere.overrides)
    assert outcome.code == 0, outcome
    assert "parameters" in outcome.out and "\nsbatch \\\n" in outcome.out
    for option in (
        *("--account=lab", "--partition=gpu", "--qos=long", "--reservation=mine", "--gpus-per-node=h100:1", "--exclusive"),
        *("--mem=0", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10", "--signal=B:USR1@60", "--requeue"),
    ):
        assert f"  {option} \\\n" in outcome.out, option
    assert not submit_elsewhere.run.exists()


def test_a_dry_run_of_a_recipe_prints_its_command(submit_elsewhere: Submitter) -> None:
    submit_elsewhere.settings["MODEL"] = "runs/chat/mid/hf/step_8"
    config = "configs/post_training/tiny/sft.yaml"
    outcome = submit_elsewhere("--dry-run", "post_training", config, f"train.output_dir={submit_elsewhere.run}", "--", "sft")
    assert outcome.code == 0 and outcome.out.startswith("sbatch \\\n"), outcome
    assert f" {submit_elsewhere.run} " in outcome.out.replace("\\\n", "") and not submit_elsewhere.run.exists()


def test_a_job_without_gpus_asks_for_one_task_on_one_node(submit_elsewhere: Submitter) -> None:
    submit_elsewhere.settings |= {"SMOL_GPUS_PER_NODE": "8", "SMOL_CPU_PARTITION": "cpu", "SMOL_REQUEUE": "chain"}
    for job in ("export", "push", "prepare", "upload", "evaluate"):
        outcome = submit_elsewhere("--dry-run", job, str(QUICKSTART), *submit_elsewhere.overrides)
        assert outcome.code == 0, outcome
        for option in ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=8", "--partition=cpu", "--no-requeue"):
            assert f"  {option} \\\n" in outcome.out, option
        assert "--gpus" not in outcome.out and "--exclusive" not in outcome.out


def test_the_help_is_the_scripts_own(submit_elsewhere: Submitter) -> None:
    outcome = submit_elsewhere("--help")
    assert outcome.code == 0 and outcome.out.startswith("Submits a job:") and "--test-only" in outcome.out


def test_what_slurm_refuses_leaves_nothing(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_PARTITION"] = "nowhere"
    outcome = submit("pretrain", str(QUICKSTART), *submit.overrides)
    assert outcome.code == 2
    assert "invalid partition" in outcome.err and "Slurm refused the job" in outcome.err
    assert not any((submit.run / "slurm" / "code").iterdir())
    outcome = submit("--test-only", "pretrain", str(QUICKSTART), *submit.overrides)
    assert outcome.code == 2 and "Slurm would refuse the job" in outcome.err


def test_slurm_is_asked_without_submitting(cluster: Cluster, submit: Submitter) -> None:
    outcome = submit("--test-only", "pretrain", str(QUICKSTART), *submit.overrides)
    assert outcome.code == 0 and re.search(r"to start at \S+ using \d+ processors on nodes n\[1-2\]", outcome.err), outcome
    assert not submit.run.exists() and not cluster.jobs()


def test_the_written_configuration_is_the_same_and_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_WEBHOOK", "https://hooks.example/secret")
    overrides = [f"train.output_dir={tmp_path}/run", "alerts.webhook=${MY_WEBHOOK}", "data.seed=9"]
    assert run_folder.main([str(QUICKSTART), "--write", str(tmp_path / "written.yaml"), *overrides]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/run\n"
    assert "secret" not in (tmp_path / "written.yaml").read_text()
    assert load(RunConfig, tmp_path / "written.yaml") == load(RunConfig, QUICKSTART, overrides)


def test_the_check_before_a_submission_loads_no_torch(elsewhere: Cluster) -> None:
    check = f"import sys; from slurm import run_folder; run_folder.main([{str(QUICKSTART)!r}]); print('torch' in sys.modules)"
    outcome = elsewhere.run(sys.executable, "-c", check)
    assert outcome.out.splitlines()[-1] == "False", outcome


def test_every_setting_is_explained_in_the_example() -> None:
    example = (REPOSITORY / "slurm" / "env.sh.example").read_text()
    used = {
        name
        for script in [*(REPOSITORY / "slurm").glob("*.sh"), *(REPOSITORY / "slurm" / "jobs").glob("*.sh")]
        for name in re.findall(r"\bSMOL_[A-Z_]+\b", script.read_text())
    }
    of_the_job = {f"SMOL_{name}" for name in ("RUN", "CODE", "CONFIG", "ENDS", "ENV", "STAGED", "SHARED_DATA", "")}
    assert {name for name in used - of_the_job if name not in example} == set()
    assert {name for name in SETTINGS if name.startswith("SMOL_") and name not in example} == set()
