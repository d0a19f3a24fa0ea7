"""The gradient-noise scale: estimators against known gradients, norms against brute force; measuring changes nothing."""

import itertools
import math
from pathlib import Path

import jobs
import noise_jobs
import pytest
import torch
from ranks import Ranks
from tiny_runs import tiny_overrides

from smol_train.callbacks.noise_scale import MEMORY, GradientNoiseScale, Measured, estimates


def squared_norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.stack(gradients).mean(0).square().sum())


@pytest.mark.parametrize(("small", "large"), [(1, 2), (1, 3), (2, 3)])
def test_the_estimates_are_unbiased(small: int, large: int) -> None:
    """Over all batches that can be drawn from four known gradients, the small batch being the large one's beginning."""
    population = list(torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0], [-0.5, 3.0]], dtype=torch.float64))
    mean = torch.stack(population).mean(0)
    noise = float((torch.stack(population) - mean).square().sum(1).mean())
    found = [
        estimates(Measured(small, squared_norm(list(drawn[:small]))), Measured(large, squared_norm(list(drawn))))
        for drawn in itertools.product(population, repeat=large)
    ]
    assert [sum(column) / len(found) for column in zip(*found, strict=True)] == pytest.approx(
        [noise, float(mean.square().sum())]
    )


def test_the_averages_are_taken_before_the_quotient() -> None:
    callback = GradientNoiseScale()
    # In each, noise and signal by the formulas: (16, 3), then (8, 5).
    for small, large, expected in ((19, 5, 16 / 3), (13, 6, (MEMORY * 16 + 8) / (MEMORY * 3 + 5))):
        callback.small = Measured(1, small)
        metrics = {"train/targets": 8.0, "train/grad_norm": math.sqrt(large)}
        callback.on_step_end(None, metrics)  # type: ignore[arg-type]
        assert metrics["train/gradient_noise_scale"] == pytest.approx(expected)
    for small in (math.nan, math.inf):
        callback.small, metrics = Measured(1, small), {"train/targets": 8.0, "train/grad_norm": 1.0}
        callback.on_step_end(None, metrics)  # type: ignore[arg-type]
        assert "train/gradient_noise_scale" not in metrics
    assert math.isfinite(callback.noise + callback.signal)


def test_no_figure_is_given_where_noise_hides_the_signal() -> None:
    callback = GradientNoiseScale()
    callback.small, metrics = Measured(1, 17.0), {"train/targets": 8.0, "train/grad_norm": 1.0}
    callback.on_step_end(None, metrics)  # type: ignore[arg-type]
    assert callback.signal < 0 and "train/gradient_noise_scale" not in metrics


@pytest.fixture(scope="module")
def settings(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *tiny_overrides(corpus, tmp_path_factory.mktemp("noise") / "run"),
        "data.stages.0.steps=2",
        "data.stages.1.steps=3",
        "optim.schedule.decay_steps=2",
    ]


@pytest.fixture(scope="module")
def weights(ranks: Ranks, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initial weights to start every layout from."""
    folder = tmp_path_factory.mktemp("weights") / "initial"
    ranks.run(jobs.save_initial_weights, 1, overrides=settings, folder=folder)
    return folder


@pytest.fixture(scope="module")
def expected(ranks: Ranks, settings: list[str], weights: Path) -> list[tuple[float, float]]:
    """(targets, squared norm) of the small and of the large batch."""
    return ranks.run(noise_jobs.brute_force, 1, overrides=settings, weights=weights)[0]


@pytest.mark.parametrize(
    "layout", [["parallel.tensor=2", "parallel.sequence=true"], ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]], ids=str
)
def test_the_norms_are_those_of_brute_force_under_every_layout(
    ranks: Ranks, settings: list[str], weights: Path, expected: list[tuple[float, float]], layout: list[str]
) -> None:
    """Two data-parallel ranks, each with two micro-batches of the step."""
    start = f"start_from={{checkpoint: {weights}, optimizer: false, data_position: false}}"
    for result in ranks.run(noise_jobs.measure, 4, overrides=[*settings, start, *layout, "logging.noise_scale_every_steps=1"]):
        _, measured, scale = result["steps"][0]
        assert [one.targets for one in measured] == [targets for targets, _ in expected]
        assert [one.squared_norm for one in measured] == pytest.approx([norm for _, norm in expected], rel=1e-5)
        noise, signal = estimates(*measured)
        assert scale == pytest.approx(noise / signal) and scale > 0


def test_measuring_changes_nothing_of_the_run(ranks: Ranks, settings: list[str]) -> None:
    """With bf16 and overlap, where the pass before the step also gathers the weights of the update before."""
    bf16 = [*settings, "train.precision=bf16"]
    plain = ranks.run(noise_jobs.measure, 2, overrides=bf16)
    measured = ranks.run(noise_jobs.measure, 2, overrides=[*bf16, "logging.noise_scale_every_steps=2"])
    assert [step[0] for step in measured[0]["steps"]] == [step[0] for step in plain[0]["steps"]]
    assert [rank["weights"] for rank in measured] == [rank["weights"] for rank in plain]
    assert [step[1] is not None for step in measured[0]["steps"]] == [False, True, False, True, False]
    assert not any(step[1] or step[2] for step in plain[0]["steps"])
