"""AdEMAMix: the paper's formulas, training, resume and checkpoints on other layouts."""

import math
from pathlib import Path

import jobs
import pytest
import torch
from ranks import RankError, Ranks
from tiny_runs import tiny_overrides

ADEMAMIX = ["optim.optimizer=ademamix", "optim.ademamix.beta3=0.99", "optim.ademamix.alpha=4"]


def build(parameters: list[torch.nn.Parameter], train_steps: int, **settings: float):
    from smol_train.ademamix import AdEMAMix
    from smol_train.sections.optim import AdEMAMixConfig

    adam = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    return AdEMAMix(parameters, AdEMAMixConfig(**settings), train_steps, **adam)


def reference(weights: torch.Tensor, gradients: list[torch.Tensor], beta3: float, alpha: float, warmup: int) -> torch.Tensor:
    """Algorithm 1 of arXiv 2409.03137, in float64, with T_alpha = T_beta3 = warmup; lr 1e-2, betas 0.9 0.95, decay 0.1."""
    w = weights.double()
    m1, m2, v = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        alpha_t = min(t * alpha / warmup, alpha)
        low, high = math.log(0.9), math.log(beta3)
        beta3_t = min(math.exp(low * high / ((1 - t / warmup) * high + t / warmup * low)), beta3) if t < warmup else beta3
        m1 = 0.9 * m1 + 0.1 * g
        m2 = beta3_t * m2 + (1 - beta3_t) * g
        v = 0.95 * v + 0.05 * g**2
        w = w - 1e-2 * ((m1 / (1 - 0.9**t) + alpha_t * m2) / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.1 * w)
    return w


def step_through(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("train_steps", [12, 40], ids=["past the warm-ups", "within the warm-ups"])
def test_it_steps_like_the_paper_s_formulas(train_steps: int) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, 5))
    gradients = [torch.randn(7, 5) for _ in range(20)]
    wanted = reference(parameter.detach(), gradients, beta3=0.999, alpha=5.0, warmup=train_steps)
    step_through(build([parameter], train_steps, beta3=0.999, alpha=5.0), parameter, gradients)
    torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-5)


def test_without_the_slow_average_it_is_adamw() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(7, 5))
    theirs = torch.nn.Parameter(ours.detach().clone())
    gradients = [torch.randn(7, 5) for _ in range(20)]
    step_through(build([ours], 10, alpha=0.0), ours, gradients)
    adamw = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    step_through(adamw, theirs, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_warm_ups_end_where_they_are_told_to() -> None:
    optimizer = build([torch.nn.Parameter(torch.ones(1))], 1000, beta3=0.9999, beta3_warmup_steps=100, alpha_warmup_steps=0)
    assert optimizer.slow_average(0.9, 1)[1] == 8.0, "no warm-up: the whole alpha at once"
    assert optimizer.slow_average(0.9, 0)[0] == pytest.approx(0.9), "it begins as fast as the fast one"
    half_lives = [math.log(0.5) / math.log(optimizer.slow_average(0.9, t)[0]) for t in (25, 50, 75)]
    assert half_lives[2] - half_lives[1] == pytest.approx(half_lives[1] - half_lives[0]), "the half-life grows linearly"
    assert optimizer.slow_average(0.9, 100)[0] == optimizer.slow_average(0.9, 500)[0] == 0.9999


@pytest.fixture(scope="module")
def saved(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fp32 run on one rank: iter_0000006 (end of the first stage) and iter_0000010."""
    run = tmp_path_factory.mktemp("ademamix")
    ranks.run(jobs.train, 1, overrides=[*tiny_overrides(corpus, run), *ADEMAMIX], save=True)
    return run


def test_it_learns_as_adamw_does(ranks: Ranks, overrides: list[str]) -> None:
    longer = [*overrides, "data.stages.0.steps=26", "optim.learning_rate=2.0e-3"]
    [adamw] = ranks.run(jobs.train, 1, overrides=longer)
    [ours] = ranks.run(jobs.train, 1, overrides=[*longer, *ADEMAMIX])
    assert ours["loss"][-1] < ours["loss"][0] - 0.8 * (adamw["loss"][0] - adamw["loss"][-1])
    assert ours["loss"] != adamw["loss"]


@pytest.mark.parametrize(("precision", "world_size"), [("bf16", 2), ("fp32", 1)])
def test_a_resumed_run_is_the_same_bit_for_bit(precision: str, world_size: int, ranks: Ranks, overrides: list[str]) -> None:
    settings = [*overrides, *ADEMAMIX, f"train.precision={precision}", "parallel.overlap=true", "checkpoint.keep_last=9"]
    settings += ["checkpoint.every_steps=4"]
    whole = ranks.run(jobs.train, world_size, overrides=settings, save=True)
    [output] = [value.partition("=")[2] for value in overrides if value.startswith("train.output_dir")]
    for step in (4, 6):  # a periodic save and one at a stage's end
        again = [*settings, f"start_from.checkpoint={output}/iter_{step:07d}", "train.output_dir=none"]
        for first, resumed in zip(whole, ranks.run(jobs.train, world_size, overrides=again), strict=True):
            assert resumed["start"] == step
            assert resumed["loss"] == first["loss"][step:]
            assert resumed["weights"] == first["weights"]


@pytest.mark.parametrize("layout", [["parallel.tensor=2"], ["parallel.pipeline=2"], []], ids=["TP2", "PP2", "DP2"])
def test_another_layout_goes_on_with_the_optimizer(layout: list[str], ranks: Ranks, overrides: list[str], saved: Path) -> None:
    start = [*overrides, *ADEMAMIX, f"start_from.checkpoint={saved / 'iter_0000006'}"]
    [same] = ranks.run(jobs.train, 1, overrides=start)
    for other in ranks.run(jobs.train, 2, overrides=[*start, *layout]):
        assert other["loss"] == pytest.approx(same["loss"], abs=2e-6), "fp32: another order of addition, as for AdamW"
    [fresh] = ranks.run(jobs.train, 1, overrides=[*start, "start_from.optimizer=false"])
    assert abs(fresh["loss"][-1] - same["loss"][-1]) > 1e-3, "without the optimizer's state the path must differ"


def test_another_optimizer_is_refused(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    start = [*overrides, f"start_from.checkpoint={saved / 'iter_0000006'}"]
    with pytest.raises(
        RankError, match=r"holds the state of optim.optimizer=ademamix, config adamw; .*start_from.optimizer=false"
    ):
        ranks.run(jobs.train, 1, overrides=start)
    [weights] = ranks.run(jobs.train, 1, overrides=[*start, "start_from.optimizer=false"])
    assert weights["start"] == 6


def test_another_precision_is_refused(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    start = [*overrides, *ADEMAMIX, f"start_from.checkpoint={saved / 'iter_0000006'}", "train.precision=bf16"]
    with pytest.raises(RankError, match=r"ademamix in train.precision=fp32, config bf16; .*start_from.optimizer=false"):
        ranks.run(jobs.train, 1, overrides=start)
