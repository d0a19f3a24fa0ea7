"""The picture of a run's losses."""

import json
from pathlib import Path

import pytest

from smol_train.plot import main


def test_a_run_is_drawn_with_its_stages_and_held_out_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"step": s, "tokens": 10 * s, "stage": "a" if s < 6 else "b", "train/loss": 9.0 / s, "train/learning_rate": 0.1}
             for s in range(1, 11)]  # fmt: skip
    lines[4]["eval/loss/docs"] = 2.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "loss.png") in capsys.readouterr().out


def test_a_folder_without_metrics_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "metrics.jsonl is missing or empty" in capsys.readouterr().err
