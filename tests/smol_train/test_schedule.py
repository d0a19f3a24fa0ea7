"""Learning rates against hand-computed values and SmolLM3's published schedule."""

import math
from typing import Any

import pytest

from smol_train.schedule import decay_start, learning_rate
from smol_train.sections.optim import OptimConfig


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
