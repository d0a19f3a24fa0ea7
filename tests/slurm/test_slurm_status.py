"""The page of all runs: what a folder tells, with Slurm and without."""

import getpass
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_stories import T0, Story, submission
from slurm_cluster import SETTINGS
from tiny_runs import QUICKSTART, REPOSITORY

from slurm import run_folder, status
from slurm.scheduler import Job, Slurm
from slurm.status import find_runs, page


def submitted(run: Path, *overrides: str, config: Path = QUICKSTART) -> Story:
    """A run on 2 x 8 GPUs whose configuration went through the scripts' own command."""
    story = Story(run)
    submission(run, "c", "pretrain", "8")
    file = run / "slurm" / "code" / "c" / "submission" / "config.yaml"
    assert run_folder.main([str(config), f"train.output_dir={run}", *overrides, "--write", str(file)]) == 0
    return story


def shown(root: Path, jobs: list[Job] | None, now: float) -> str:
    return page([status.status(run, root, jobs, T0 + now) for run in find_runs(root)])


def test_a_page_says_of_every_run_where_it_is(tmp_path: Path) -> None:
    story = submitted(tmp_path / "me" / "run", "optim.learning_rate=0.001")
    story.start(0)
    for step in range(1, 351):
        more = {"perf/step_seconds": 2.0, "perf/tokens_per_second": 1.25e6, "train/loss": 3 - step / 1000}
        story.line("metrics.jsonl", 100 + 2 * step, step=step, **more)
    story.alert(790, "spike")
    story.chain = "e"
    submission(story.run, "e", "preflight", "1", "ablation")
    story.start(10, nodes="n3")
    story.end(10 + 7200, "done", "done")
    submitted(tmp_path / "other" / "run", "train.purpose=debugging")
    jobs = [Job("7", "pretrain-run-c", "RUNNING", "None", "n[1-2]", "1:00")]
    text = shown(tmp_path, jobs, 800)
    first, second = text.splitlines()[1:3]
    owner = getpass.getuser()
    assert first.split()[:3] == ["me/run", owner, "running"]
    # 700 of 800 seconds in steps; 16 GPUs for 800 seconds and 1 for two hours.
    assert first.split()[3:] == ["350/700", "2.650", "1.25M", "11", "min", "40", "s", "6", "87.5", "%"], first
    assert second.split() == ["other/run", owner, "running", "0/700", "-", "-", "-", "-", "-"]
    assert "me/run\n  differs: " in text and "spike: spike" in text
    assert "ablation          2\nmain              4" in text
    assert max(map(len, text.splitlines())) <= status.WIDTH


def test_what_differs_from_the_base_is_said_and_not_more_than_fits(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"base: {QUICKSTART}\n")
    ablation = tmp_path / "ablation.yaml"
    ablation.write_text("base: base.yaml\noptim: {learning_rate: 0.5}\n")
    submitted(tmp_path / "runs" / "run", "train.seed=9", config=ablation)
    text = shown(tmp_path / "runs", [], 0)
    assert "  differs: train.seed=9, optim.learning_rate=0.5\n" in text + "\n" and "output_dir" not in text
    many = [f"data.seed={at}" for at in range(20)]
    (tmp_path / "runs" / "run" / "slurm" / "code" / "c" / "submission" / "differs").write_text("\n".join(many))
    assert ", and 14 more" in shown(tmp_path / "runs", [], 0)


@pytest.mark.parametrize(
    ("jobs", "state"),
    [
        (None, "unknown"),
        ([], "ended"),
        ([Job("7", "pretrain-run-c", "PENDING", "Priority", "", "1:00")], "pending"),
        ([Job("7", "pretrain-else-c", "PENDING", "Priority", "", "1:00")], "ended"),
    ],
)
def test_the_state_of_the_job(tmp_path: Path, jobs: list[Job] | None, state: str) -> None:
    submitted(tmp_path / "run")
    assert shown(tmp_path, jobs, 0).splitlines()[1].split()[2] == state


@pytest.mark.parametrize(("following", "state"), [("done", "done"), ("stop", "stopped"), ("again", "unknown")])
def test_the_state_of_a_run_that_told_its_end_needs_no_slurm(tmp_path: Path, following: str, state: str) -> None:
    story = submitted(tmp_path / "run")
    story.start(0)
    story.end(5, "time limit", following)
    assert shown(tmp_path, None, 0).splitlines()[1].split()[2] == state


def test_runs_are_found_below_and_not_inside_each_other(tmp_path: Path) -> None:
    for name in ("a", "group/b", "group/deep/c", "group/deep/far/d", "a/rehearsal/e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").touch()
    assert [str(run.relative_to(tmp_path)) for run in find_runs(tmp_path)] == ["a", "group/b", "group/deep/c"]
    assert list(find_runs(tmp_path / "a")) == [tmp_path / "a"]


def test_a_folder_that_others_may_not_look_into_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "private":
            raise PermissionError(path)
        return path.glob("*")

    (tmp_path / "private").mkdir()
    (tmp_path / "run" / "slurm" / "code").mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert list(find_runs(tmp_path)) == [tmp_path / "run"]


def test_a_run_without_slurm_and_a_folder_without_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slurm, "jobs", lambda _: None)
    assert status.main([str(tmp_path)]) == 2
    assert f"there are no runs in {tmp_path}; give the folder under which runs have" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5, "train/loss": 2.0, "perf/tokens_per_second": 900.0}\n')
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:] == ["none", "5", "2.000", "900", "-", "-", "-"]


def test_a_configuration_of_another_version_hides_only_the_total(tmp_path: Path) -> None:
    story = submitted(tmp_path / "run")
    (story.run / "slurm" / "code" / "c" / "submission" / "config.yaml").write_text("model: {of: another time}\n")
    story.steps(0, 1, 3)
    assert " 3 " in shown(tmp_path, [], 5).splitlines()[1]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """An env.sh without RUN_ROOT."""
    file = tmp_path / "env.sh"
    file.write_text("".join(f'{name}="{value}"\n' for name, value in SETTINGS.items()))
    return file


def script(name: str, settings: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RUN_ROOT"} | {"SMOL_ENV": str(settings)}
    command = ["bash", str(REPOSITORY / "slurm" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_scripts_take_their_settings_from_env_sh(tmp_path: Path, settings: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "metrics.jsonl").touch()
    given = script("status.sh", settings, str(tmp_path / "runs"))
    assert given.returncode == 0 and given.stdout.splitlines()[1].startswith("a "), given
    assert "RUN_ROOT: is not set in env.sh; name the folder of your runs" in script("status.sh", settings).stderr
    settings.write_text(settings.read_text() + f'RUN_ROOT="{tmp_path}/runs"\n')
    assert script("status.sh", settings).stdout == given.stdout
    watched = script("watch.sh", settings, str(tmp_path / "runs" / "a"))
    assert watched.returncode == 2 and "has no training job in slurm/code" in watched.stderr
    assert "RUN is needed: the run's folder" in script("watch.sh", settings).stderr
