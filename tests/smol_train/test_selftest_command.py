"""The self-test's command in processes of its own: alone with ranks that it starts, under torchrun, and killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_runs import QUICKSTART, REPOSITORY

pytestmark = pytest.mark.slow

SELFTEST = ["-m", "smol_train.selftest"]


def command(check: str, overrides: list[str], output: Path, *options: str) -> list[str]:
    settings = [*overrides, "train.backend=torch"]
    return [*SELFTEST, check, "--config", str(QUICKSTART), "--output", str(output), "--steps", "6", *options, *settings]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False
    )


def test_all_checks_on_two_ranks_of_its_own(overrides: list[str], tmp_path: Path) -> None:
    done = run(command("all", overrides, tmp_path / "out", "--ranks", "2", "--seed", "1"))
    checks = json.loads((tmp_path / "out" / "selftest.json").read_text())["checks"]
    outcomes = {check["check"]: check["outcome"] for check in checks}
    assert outcomes.pop("throughput") in ("passed", "failed")  # how fast a shared machine is proves nothing
    assert outcomes == dict.fromkeys(("isolation", "seeds", "parity", "resume"), "passed"), done.stdout + done.stderr
    assert not (tmp_path / "run").exists() and [path.name for path in (tmp_path / "out").iterdir()] == ["selftest.json"]


def test_resume_under_torchrun(overrides: list[str], tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run([*launcher, *command("resume", overrides, tmp_path / "out")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nresume      passed") == 1 and done.stdout.startswith("2 ranks, ")
    assert done.stdout.count("bit for bit") == 2 and "after SIGTERM, on TP2 with SP" in done.stdout


def test_nothing_is_left_running_when_the_command_is_killed(overrides: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *command("parity", overrides, tmp_path / "out", "--ranks", "2")],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 240
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
