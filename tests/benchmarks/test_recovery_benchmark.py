"""The benchmark of recovery tells of a story that passed, and of no other. The real one is tests/slurm/test_recovery.py."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

from benchmarks import recovery

STORY = f"""
import sys

import pytest

sys.path.insert(0, "{REPOSITORY}/tests/slurm")
from run_stories import Story


@pytest.mark.slow
def test_a_crash(tmp_path):
    story = Story(tmp_path / "run")
    story.start(0)
    story.steps(60, 1, 10)
    story.end(75, "crash")
    story.start(80, 5)
    story.steps(100, 6, 20)
    assert OUTCOME
"""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recovery, "STORY", str(tmp_path / "test_story.py"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    return tmp_path / "results" / "recovery.md"


@pytest.mark.skipif(not shutil.which("srun"), reason="Slurm is not installed: apt-get install slurm-client")
def test_the_table_holds_what_a_story_that_passed_left(output: Path, tmp_path: Path) -> None:
    (tmp_path / "test_story.py").write_text(STORY.replace("OUTCOME", "True"))
    assert recovery.main(["--output", str(output)]) == 0
    [row] = [line for line in output.read_text().splitlines() if "| crash |" in line]
    assert "| 36 s | 5 |" in row, "from step 10 to step 11, with five steps made again"


def test_of_a_story_that_failed_nothing_is_told(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_story.py").write_text(STORY.replace("OUTCOME", "False"))
    assert recovery.main(["--output", str(output)]) == 2
    assert "did not pass, or was left out; see above: there is nothing to tell" in capsys.readouterr().err
    assert not output.exists()
