"""smol_progress: what an export knows of the training behind it, also when its checkpoint is gone."""

import json
import shutil
from pathlib import Path

import pytest

from smol_progress import Progress, progress_of, read, write


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"iter_{step:07d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "tokens": 512 * step, "samples": 8 * step}))
    return folder


def trained(run: Path) -> None:
    """Warm-up, stable phase, decay, and a line that is being written."""
    rates = [0.001, 0.002, 0.004, 0.004, 0.004, 0.003, 0.001]
    lines = [json.dumps({"step": step, "train/learning_rate": rate}) for step, rate in enumerate(rates, start=1)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 8, "train/lea']))


def test_the_learning_rates_share_is_1_in_the_stable_phase_and_falls_in_the_decay(tmp_path: Path) -> None:
    trained(tmp_path)
    shares = {step: progress_of(checkpoint(tmp_path, step)).learning_rate_share for step in (5, 6, 7)}
    assert shares == {5: 1, 6: 0.75, 7: 0.25}
    assert progress_of(checkpoint(tmp_path, 2)) == Progress(2, 1024, 1), "of the highest so far"


def test_a_step_without_a_line_takes_the_one_before(tmp_path: Path) -> None:
    trained(tmp_path)
    assert progress_of(checkpoint(tmp_path, 9)).learning_rate_share == 0.25
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval/loss/docs": 2.0}\n')
    assert progress_of(checkpoint(tmp_path, 1)) == Progress(1, 512, None)
    (tmp_path / "metrics.jsonl").unlink()
    assert progress_of(checkpoint(tmp_path, 3)) == Progress(3, 1536, None)


def test_an_export_keeps_it_when_the_checkpoint_is_removed(tmp_path: Path) -> None:
    trained(tmp_path)
    folder = checkpoint(tmp_path, 6)
    write(tmp_path, progress_of(folder))
    shutil.rmtree(folder)
    assert read(tmp_path) == Progress(6, 3072, 0.75)
    (tmp_path / "training.json").write_text('{"step": ')
    with pytest.raises(ValueError, match="Expecting value"):
        read(tmp_path)
    (tmp_path / "training.json").unlink()
    assert read(tmp_path) is None
