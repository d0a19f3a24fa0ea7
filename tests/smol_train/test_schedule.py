"""Learning rates against hand-computed values and SmolLM3's published schedule."""

import math
from typing import Any

import pytest
from tiny_runs import REPOSITORY

import smol_config
from smol_train.config import RunConfig
from smol_train.schedule import decay_start, learning_rate
from smol_train.sections.optim import OptimConfig

CONFIGS = REPOSITORY / "configs"


def optim(peak: float = 1.0, **schedule: Any) -> OptimConfig:
    return OptimConfig.model_validate({"learning_rate": peak, "schedule": schedule})


SMOLLM3 = optim(2.0e-4, kind="wsd", warmup_steps=2000, decay_steps=522_000, decay_shape="linear")


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, 1e-7),
        (1000, 1e-4),
        (1999, 2e-4 * 1999 / 2000),
        (2000, 2e-4),
        (2001, 2e-4),
        (3_450_001, 2e-4),
        (4_198_000, 2e-4),
        (4_198_001, 2e-4 * 521_999 / 522_000),
        (4_459_000, 1e-4),
        (4_719_999, 2e-4 / 522_000),
        (4_720_000, 0.0),
    ],
)
def test_smollm3_runs_at_its_published_rates(step: int, rate: float) -> None:
    assert learning_rate(SMOLLM3, 4_720_000, step) == pytest.approx(rate, rel=1e-12, abs=1e-20)


def nanotron_logs(step: int, peak: float, warmup: int, start: int, decay: int, shape: str) -> float:
    """The rate that nanotron logs at a step, in the terms of its configuration: lr_warmup_steps, lr_decay_starting_step and
    lr_decay_steps. It updates with the rate logged at the step before; at the first step with 0."""
    if step <= warmup:
        return peak * step / warmup
    if step < start:
        return peak
    progress = min((step - start) / decay, 1)
    return peak * (1 - progress if shape == "linear" else (1 + math.cos(math.pi * progress)) / 2)


@pytest.mark.parametrize("step", [1, 2, 1999, 2000, 2001, 3_450_000, 4_197_999, 4_198_000, 4_198_001, 4_459_000, 4_720_000])
def test_smollm3_differs_from_what_was_logged_by_a_step_of_its_decay(step: int) -> None:
    """Its file: 2,000 steps of warm-up, decay from step 4,198,001 on over 522,000 steps, 4,720,000 steps in all."""
    logged = [nanotron_logs(s, 2e-4, 2000, 4_198_001, 522_000, "linear") for s in (step, step + 1)]
    expected = logged[0] if step <= 4_198_000 else logged[1]
    assert learning_rate(SMOLLM3, 4_720_000, step) == pytest.approx(expected, rel=1e-9, abs=1e-20)
    difference = logged[0] - learning_rate(SMOLLM3, 4_720_000, step)
    assert difference == pytest.approx(0 if step <= 4_198_000 else 2e-4 / 522_000, rel=1e-6, abs=1e-20)


@pytest.mark.parametrize(("steps", "name"), [(20_000, "long_32k"), (22_000, "long_64k")])
def test_the_long_context_runs_have_the_logged_rates(steps: int, name: str) -> None:
    config = smol_config.load(RunConfig, CONFIGS / "smollm3" / f"{name}.yaml", keep_unset=True)
    assert config.train_steps == steps
    for step in (1, 500, 999, 1000, 1001, 1002, 10_500, steps - 1, steps):
        logged = nanotron_logs(step, 2e-5, 1000, 1000, steps - 1000, "cosine")
        assert learning_rate(config.optim, steps, step) == pytest.approx(logged, rel=1e-9, abs=1e-20)


def test_long_context_cosine_starts_after_its_warmup_and_ends_at_zero() -> None:
    config = optim(2.0e-5, kind="cosine", warmup_steps=1000)
    rates = [learning_rate(config, 20_000, step) for step in (1, 1000, 1001, 10_500, 20_000)]
    first_decayed = 2e-5 * (1 + math.cos(math.pi / 19_000)) / 2
    assert rates == pytest.approx([2e-8, 2e-5, first_decayed, 1e-5, 0.0], rel=1e-9, abs=1e-20)


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("linear", 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.5),
        ("cosine", 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55),
        ("1-sqrt", 0.1 + 0.9 * 0.5, 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        ("exponential", 0.1**0.25, 0.1**0.5),
    ],
)
def test_each_decay_shape_falls_from_the_peak_to_the_minimum(shape: str, quarter: float, half: float) -> None:
    config = optim(kind="wsd", decay_steps=40, decay_shape=shape, min_learning_rate=0.1)
    rates = [learning_rate(config, 100, step) for step in (1, 60, 70, 80, 100, 101)]
    assert rates == pytest.approx([1, 1, quarter, half, 0.1, 0.1])


def test_multi_step_multiplies_after_each_milestone() -> None:
    config = optim(kind="multi_step", milestones=[80, 90], factor=0.1, warmup_steps=10)
    rates = [learning_rate(config, 100, step) for step in (5, 10, 80, 81, 90, 91, 100)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_and_undecayed_wsd_stay_at_the_peak() -> None:
    assert {learning_rate(optim(kind=kind), 10, step) for kind in ("constant", "wsd") for step in (0, 1, 10, 11)} == {1.0}


def test_a_run_that_only_warms_up_ends_at_the_peak() -> None:
    config = optim(kind="cosine", warmup_steps=10)
    assert [learning_rate(config, 10, step) for step in (0, 5, 10)] == [0, 0.5, 1.0]


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 0.5), ("linear", 0.25)])
def test_a_smaller_batch_scales_the_rate_by_its_rule(rule: str, factor: float) -> None:
    config = optim(2.0, kind="wsd", warmup_steps=4, decay_steps=4, batch_rule=rule)
    for step in (2, 5, 8):
        assert learning_rate(config, 10, step, batch_share=0.25) == pytest.approx(factor * learning_rate(config, 10, step))


def test_the_decay_of_wsd_starts_its_length_before_the_end() -> None:
    assert decay_start(SMOLLM3.schedule, 4_720_000) == 4_198_000
    assert decay_start(optim(kind="constant").schedule, 10) is None
