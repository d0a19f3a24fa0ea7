"""The quickstarts as a stranger runs them, in a copy of the repository: minutes long."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files and this environment, which the set-up then finds installed."""
    if not (REPOSITORY / ".venv" / "installed" / "requirements.txt").exists():
        pytest.skip("the environment was not made by setup.sh; run bash run_tests.sh")
    target = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    (target / ".venv").symlink_to(REPOSITORY / ".venv")
    return target


def run(copy: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", script, *arguments], cwd=copy, capture_output=True, text=True, timeout=2400, check=False)


def quickstart(copy: Path, *arguments: str) -> str:
    result = run(copy, "quickstart.sh", *arguments)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_the_quickstart_learns_converts_is_scored_by_step_and_can_be_called_again(copy: Path) -> None:
    """The suite in small: what held-out prose costs."""
    (copy / "prose.yaml").write_text("folders: [evaluation/offline]\ntasks: [{name: text_docs}]\n")
    output = quickstart(copy, "--watch", "prose.yaml")
    root = copy / "runs" / "quickstart"
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    untrained = math.log(4096)
    assert lines[0]["train/loss"] == pytest.approx(untrained, abs=0.2)
    assert sum(line["train/loss"] for line in lines[-20:]) / 20 <= 0.55 * untrained
    differences = [float(found) for found in re.findall(r"(\d\.\de[+-]\d\d)   \(", output)]
    assert len(differences) == 2 and max(differences) < 1e-3
    assert (root / "loss.png").stat().st_size > 10_000
    assert json.loads((root / "hf" / "parity.json").read_text())["passed"] is True
    assert "class Parser:" in output[output.index("sample") :]
    scored = sorted((root / "run/evaluations/prose").glob("step_*"), key=lambda folder: int(folder.name.split("_")[1]))
    assert [folder.name for folder in scored] == [f"step_{step}" for step in range(100, 800, 100)]
    costs = [json.loads((folder / "results.json").read_text())["results"]["eval/text_docs/bits_per_byte"] for folder in scored]
    assert costs[0] > costs[3] > costs[6]
    assert re.search(r"^eval/text_docs/bits_per_byte( +-\d\.\d+ \.\. -\d\.\d+ better){2}$", output, re.MULTILINE)

    again = quickstart(copy, "--watch", "prose.yaml")
    assert "sample" in again
    assert (root / "run" / "metrics.jsonl").read_text().count("\n") == len(lines), "no step was trained twice"


def test_the_quickstarts_model_becomes_a_chat_model_and_a_second_call_trains_nothing(copy: Path) -> None:
    """In small: too few drills for every rise, enough for the form of a chat and for leaving thoughts out."""
    small = ("--seeds", "1", "--rows", "1500")
    first = run(copy, "quickstart_chat.sh", *small)
    assert first.returncode in (0, 1), first.stdout[-3000:] + first.stderr[-3000:]
    rose = re.findall(r"^(\w+) +(\S+) .* rose$", first.stdout, re.MULTILINE)
    assert {("mid", "think/form"), ("mid", "think/mode"), ("sft", "no_think/mode")} <= set(rose), first.stdout[-3000:]
    root = copy / "runs" / "chat"
    assert (root / "report.png").stat().st_size > 10_000 and (root / "seed_0" / "merged" / "config.json").is_file()
    metrics = {path: path.read_bytes() for path in root.glob("seed_0/*/metrics.jsonl")}
    assert len(metrics) == 4
    again = run(copy, "quickstart_chat.sh", *small)
    assert again.returncode == first.returncode
    assert again.stdout[again.stdout.index("== report") :] == first.stdout[first.stdout.index("== report") :]
    assert metrics == {path: path.read_bytes() for path in metrics}


@pytest.mark.parametrize("script", ["quickstart.sh", "quickstart_chat.sh"])
def test_an_unknown_argument_is_refused(copy: Path, script: str) -> None:
    result = run(copy, script, "--fersh")
    assert result.returncode == 2
    assert "unknown argument --fersh" in result.stderr


def test_a_suite_that_is_not_there_is_refused_before_anything_is_made(copy: Path) -> None:
    result = run(copy, "quickstart.sh", "--watch", "prosa.yaml")
    assert result.returncode == 2
    assert "--watch prosa.yaml is not there" in result.stderr
