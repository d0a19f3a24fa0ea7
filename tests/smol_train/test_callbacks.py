"""Metrics, progress and signals around the loop."""

import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path

import jobs
import pytest
import torch
from ranks import Ranks

from smol_train.callbacks.metrics import peak_tflops


def test_the_peak_is_the_configured_one_or_unknown_without_a_gpu() -> None:
    assert peak_tflops(torch.device("cpu"), None) is None
    assert peak_tflops(torch.device("cpu"), 0.5) == 0.5


def test_every_step_is_one_line_and_one_tensorboard_point(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = ["evaluation.every_steps=5", "logging.peak_tflops=0.1"]
    ranks.run(jobs.train_with_metrics, 2, overrides=[*overrides, *settings])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["tokens"] for line in lines] == [512 * step for step in range(1, 11)]
    assert [line["stage"] for line in lines] == ["stable"] * 6 + ["decay"] * 4
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times) and times[0].tzinfo is not None
    assert [line["step"] for line in lines if "eval/loss/code" in line] == [5, 10]
    for line in lines:
        assert 0 <= line["perf/data_wait_share"] <= 1
        assert line["perf/tokens_per_second"] == pytest.approx(2 * line["perf/tokens_per_second_per_device"])
        speed, flops = line["perf/tokens_per_second_per_device"], 6 * 65_536 + 6 * 4 * 46_080 + 12 * 4 * 64 * 64
        assert line["perf/model_flops_utilization"] == pytest.approx(speed * flops / 0.1e12)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert points == [(line["step"], pytest.approx(line["train/loss"])) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_for_any_layout_and_exits_85_on_all(
    number: signal.Signals, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    settings = ["train.precision=bf16", "data.stages.0.steps=1000"]
    results = ranks.run(jobs.train_until_signal, 2, overrides=[*overrides, *settings], number=number, at_step=3)
    assert [result["code"] for result in results] == [85, 85]
    [step] = {result["step"] for result in results}
    state = json.loads((tmp_path / "run" / f"iter_{step:07d}" / "state.json").read_text())
    assert (state["reason"], state["optimizer"]) == ("stop requested", "fully_reshardable")
    assert step in (3, 4)


def test_progress_is_plain_lines_off_a_terminal(capfd: pytest.CaptureFixture[str], overrides: list[str]) -> None:
    import subprocess

    from tiny_runs import REPOSITORY

    command = [sys.executable, "pretrain_smol.py", "--config", "configs/quickstart.yaml", *overrides]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("step 10/10  decay  loss ") and "tokens/s" in last and "held-out: loss/code" in last
