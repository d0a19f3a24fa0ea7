"""Spikes: which steps are one, that their updates are left out, and the way back from those that persist."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks
from spike_jobs import train_with_poison

from smol_config import ConfigError, load
from smol_train.config import RunConfig
from smol_train.sections.spikes import SpikesConfig
from smol_train.spikes import SpikeMonitor

NO_SAMPLES = (0, 0)


def steady(monitor: SpikeMonitor, config: SpikesConfig, steps: int = 64) -> None:
    noise = random.Random(1)
    for step in range(steps):
        monitor.judge(config, "stable", step, noise.gauss(2.0, 0.02), noise.gauss(0.3, 0.03))


@pytest.mark.parametrize(("loss", "norm"), [(2.5, 0.3), (2.0, 1.0), (math.nan, 0.3), (2.0, math.inf)])
def test_a_loss_or_a_norm_far_above_the_window_is_a_spike_and_so_is_what_is_no_number(loss: float, norm: float) -> None:
    monitor, config = SpikeMonitor(), SpikesConfig()
    steady(monitor, config)
    verdict = monitor.judge(config, "stable", 64, loss, norm)
    assert verdict.reason and not verdict.update and not verdict.roll_back
    assert monitor.judge(config, "stable", 65, 2.0, 0.3).update, "the spike itself does not enter the window"


def test_low_values_small_rises_and_new_levels_of_a_new_stage_are_no_spikes() -> None:
    monitor, config = SpikeMonitor(), SpikesConfig()
    steady(monitor, config)
    assert monitor.judge(config, "stable", 64, 1.0, 0.01).update
    steady(monitor, config)
    assert monitor.judge(config, "stable", 65, 2.1, 0.4).update
    assert monitor.judge(config, "decay", 66, 3.0, 3.0).update


def test_a_constant_window_needs_a_loss_a_fiftieth_higher_or_three_times_the_norm() -> None:
    monitor, config = SpikeMonitor(), SpikesConfig()
    for step in range(64):
        monitor.judge(config, "stable", step, 2.0, 1.0)
    assert not monitor.judge(config, "stable", 64, 2.05, 1.0).update
    assert not monitor.judge(config, "stable", 65, 2.0, 3.1).update
    assert monitor.judge(config, "stable", 66, 2.03, 2.9).update


def test_without_sigma_only_what_is_no_number_is_a_spike() -> None:
    monitor, config = SpikeMonitor(), SpikesConfig(sigma=0)
    steady(monitor, config)
    assert monitor.judge(config, "stable", 64, 1e6, 1e6).update
    assert not monitor.judge(config, "stable", 65, math.nan, 1.0).update


def test_spikes_in_a_row_ask_for_a_rollback_and_a_usual_step_between_them_does_not() -> None:
    config = SpikesConfig(rollback_after=3)
    monitor = SpikeMonitor()
    steady(monitor, config)
    verdicts = [monitor.judge(config, "stable", 64 + n, loss, 0.3) for n, loss in enumerate([9.0, 9.0, 2.0, 9.0, 9.0, 9.0])]
    assert [verdict.roll_back for verdict in verdicts] == [False] * 5 + [True]
    assert monitor.first_step == 67


def test_a_monitor_goes_on_from_its_stored_state() -> None:
    config, monitor = SpikesConfig(), SpikeMonitor()
    steady(monitor, config)
    restored = SpikeMonitor(**json.loads(json.dumps(monitor.state())))
    assert restored == monitor
    assert restored.judge(config, "stable", 64, 2.5, 0.3) == monitor.judge(config, "stable", 64, 2.5, 0.3)


def test_a_window_that_can_never_judge_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"least_window=64 is above window=32"):
        load(RunConfig, Path("configs/quickstart.yaml"), [*overrides, "spikes.window=32", "spikes.least_window=64"])


# --- on real ranks ------------------------------------------------------------------------------------------------------------

SETTINGS = [
    "data.stages.0.steps=24",
    "spikes.sigma=100",  # the norms of so small a run jump
    "spikes.window=16",
    "spikes.least_window=10",
    "spikes.rollback_after=3",
    "spikes.margin_steps=1",
    "spikes.clip_steps=12",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=8",
]
PERSISTENT = (88, 120)
"""Four steps of 8 samples: steps 12 to 15."""


def run(overrides: list[str], name: str) -> list[str]:
    """The tiny run, long enough for a window, in a folder of its own."""
    output = next(item for item in overrides if item.startswith("train.output_dir="))
    return [*overrides, *SETTINGS, f"{output}/{name}"]


def folder(overrides: list[str]) -> Path:
    return Path(overrides[-1].removeprefix("train.output_dir="))


def alerts(overrides: list[str]) -> list[str]:
    return [json.loads(line)["event"] for line in (folder(overrides) / "alerts.jsonl").read_text().splitlines()]


def shown(result: dict[str, Any]) -> list[tuple[int, tuple[int, int]]]:
    return [(step["step"], step["samples"]) for step in result["steps"] if step["updated"]]


@pytest.mark.parametrize("layout", ["data.seed=0", "parallel.tensor=2"], ids=["DP2 with overlap", "TP2 x DP2"])
def test_one_spike_costs_its_update_and_nothing_else(layout: str, ranks: Ranks, overrides: list[str]) -> None:
    settings = [*run(overrides, "one"), layout]
    results = ranks.run(train_with_poison, 4 if "tensor" in layout else 2, overrides=settings, poisoned=(80, 88))
    for result in results:
        assert [step["step"] for step in result["steps"] if not step["updated"]] == [11]
        assert [step["step"] for step in result["steps"][:-1] if not step["moved"]] == [11]  # the last one's rate is 0
        assert result["code"] == 0 and result["steps"][-1]["step"] == 28
    assert alerts(run(overrides, "one")) == ["started", "spike", "done"]


def test_a_persistent_spike_takes_the_run_back_and_past_its_samples(ranks: Ranks, overrides: list[str]) -> None:
    settings = run(overrides, "persistent")
    first, second = ranks.run(train_with_poison, 2, overrides=settings, poisoned=PERSISTENT)
    assert shown(first) == shown(second)
    attempts = [step["step"] for step in first["steps"]]
    assert attempts == [*range(1, 15), *range(9, 29)], "three spikes after step 11, back to the checkpoint of step 8"
    trained = [samples for step, samples in shown(first)[-20:]]
    # The range is that of the three spikes and a batch on each side: the fourth poisoned batch lies in the margin.
    assert first["skips"] == [(80, 120)]
    assert trained[:3] == [(64, 72), (72, 80), (120, 128)]
    assert trained[-1] == (256, 264), "stages keep their number of steps"
    clips = {step["step"]: step["clip"] for step in first["steps"][-20:]}
    assert clips[9] == 0.5 and clips[27] == 1.0
    assert alerts(settings) == ["started", "spike", "rollback", "done"]

    lines = [json.loads(line) for line in (folder(settings) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 29)), "the lost attempt's lines are gone"
    report = folder(settings) / "spikes" / "step_0000014"
    assert [step["updated"] for step in json.loads((report / "steps.json").read_text())][-4:] == [True, False, False, False]
    documents = [json.loads(line) for line in (report / "documents.jsonl").read_text().splitlines()]
    assert documents[0]["sample"] == 88 and documents[-1]["sample"] == 119
    assert any("def " in document["text"] for document in documents)


def test_a_process_that_dies_in_a_rollback_starts_again_with_the_decision_in_force(ranks: Ranks, overrides: list[str]) -> None:
    whole = ranks.run(train_with_poison, 2, overrides=run(overrides, "whole"), poisoned=PERSISTENT)
    settings = run(overrides, "dies")
    died = ranks.run(train_with_poison, 2, overrides=settings, poisoned=PERSISTENT, die_in_rollback=True)
    assert [result["died_at"] for result in died] == [14, 14]
    again = ranks.run(train_with_poison, 2, overrides=settings, poisoned=PERSISTENT)
    assert again[0]["start"] == 8
    assert shown(again[0]) == shown(whole[0])[-20:]
    assert again[0]["weights"] == whole[0]["weights"]


def test_a_run_that_cannot_get_past_a_spike_stops_and_is_not_started_again(ranks: Ranks, overrides: list[str]) -> None:
    settings = [*run(overrides, "endless"), "spikes.max_rollbacks=2"]
    [result] = ranks.run(train_with_poison, 1, overrides=settings, poisoned=(88, 10**6))
    assert result["code"] == 93
    assert alerts(run(overrides, "endless")).count("rollback") == 2
    starts = [
        after["step"]
        for before, after in zip(result["steps"], result["steps"][1:], strict=False)
        if after["step"] <= before["step"]
    ]
    assert starts == [9, 5], "the second goes one checkpoint further back"


def test_without_a_checkpoint_to_go_back_to_the_run_goes_on_at_the_new_level(ranks: Ranks, overrides: list[str]) -> None:
    settings = [*run(overrides, "nowhere"), "checkpoint.every_steps=1000"]
    [result] = ranks.run(train_with_poison, 1, overrides=settings, poisoned=(88, 10**6))
    assert result["code"] == 0
    assert [step["step"] for step in result["steps"] if not step["updated"]] == [12, 13, 14]
