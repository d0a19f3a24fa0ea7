"""The benchmark of evaluation, on a few questions. Nothing here looks at how fast anything is."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.evaluation_run import SIDES, _compare, main
from smol_config import UserError

pytestmark = pytest.mark.slow
OFFLINE = Path(__file__).resolve().parents[2] / "evaluation" / "offline"


def test_both_sides_answer_the_same_questions_and_their_scores_agree(base_model: Path, corpus: Path, tmp_path: Path) -> None:
    data = {"text": str(corpus / "text" / "held_out"), "each": 4, "passages": 4}
    tasks = [{"name": "cloze_docs"}, {"name": "cloze_docs", "form": "mcf"}, {"name": "sums", "metrics": ["acc"]}]
    suite, output = tmp_path / "small.yaml", tmp_path / "table.md"
    suite.write_text(yaml.safe_dump({"tasks": tasks, "folders": [str(OFFLINE)], "data": data, "dtype": "float32"}))
    assert main([str(base_model), "--suite", str(suite), "--repeats", "1", "--output", str(output)]) == 0
    table = output.read_text()
    assert all(f"| {name} |" in table for name in SIDES.values())
    assert "3 tasks, of which lm-eval's command has 2" in table


def test_scores_that_differ_end_the_benchmark(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name, content in (
        (ours, "results.json", {"eval/sums/acc": 0.5}),
        (theirs, "results_now.json", {"sums": {"alias": "sums", "acc,none": 0.5001, "acc_stderr,none": 0.1}}),
    ):
        folder.mkdir()
        (folder / name).write_text(json.dumps({"results": content}))
    with pytest.raises(UserError, match=r"eval/sums/acc: 0\.5 here, 0\.5001 by lm-eval's command"):
        _compare(ours, theirs)
