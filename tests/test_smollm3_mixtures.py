"""SmolLM3's five published mixtures: sources, weights, group shares, lengths, and how one run goes on from another."""

from pathlib import Path

import pytest

import smol_config
from data_tools.catalogue import load_catalogue
from data_tools.mixture_plan import MixturePlan, plan_mixture
from data_tools.run_config import load_data_run
from smol_train.config import RunConfig
from smol_train.schedule import learning_rate

SMOLLM3 = Path(__file__).resolve().parents[1] / "configs" / "smollm3"
GROUPS = ("English web", "multilingual", "code", "math", "reasoning")
MIXTURES = [
    # file, stage, datasets, steps, tokens, sum of weights, percent of each of GROUPS
    ("pretrain.yaml", "stable", 41, 3_450_000, 8_139_571_200_000, 1.0, (72.8, 12.0, 12.5, 2.7, 0.0)),
    ("pretrain.yaml", "stable-2", 46, 748_000, 1_764_753_408_000, 1.00005, (64.9, 11.7, 14.3, 9.1, 0.0)),
    ("pretrain.yaml", "decay", 56, 522_000, 1_231_552_512_000, 1.00565, (50.4, 13.1, 23.2, 13.1, 0.15)),
    ("long_32k.yaml", "long-32k", 56, 20_000, 47_185_920_000, 1.0, (40.05, 11.8, 22.7, 15.3, 10.1)),
    ("long_64k.yaml", "long-64k", 57, 22_000, 51_904_512_000, 1.0, (40.5, 11.0, 19.8, 13.5, 15.1)),
]


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def planned(file: str) -> MixturePlan:
    return plan_mixture(load_data_run(SMOLLM3 / file, keep_unset=True), load_catalogue(SMOLLM3 / "catalogue.yaml"))


def config(file: str) -> RunConfig:
    return smol_config.load(RunConfig, SMOLLM3 / file, keep_unset=True)


@pytest.mark.parametrize(("file", "name", "datasets", "steps", "tokens", "weights", "shares"), MIXTURES)
def test_mixtures_are_the_published_ones(
    file: str, name: str, datasets: int, steps: int, tokens: int, weights: float, shares: tuple[float, ...]
) -> None:
    plan = planned(file)
    (stage,) = (stage for stage in plan.stages if stage.name == name)
    assert (len(stage.draws), stage.steps, stage.tokens) == (datasets, steps, tokens)
    assert stage.weight_sum == pytest.approx(weights, abs=1e-6)
    groups = stage.groups(plan.sources)
    assert [100 * groups.get(group, 0.0) for group in GROUPS] == pytest.approx(shares, abs=0.05)


def test_all_five_come_to_the_published_tokens() -> None:
    assert sum(planned(file).tokens for file in ("pretrain.yaml", "long_32k.yaml", "long_64k.yaml")) == 11_234_967_552_000


@pytest.mark.parametrize(
    ("file", "length", "batch", "theta", "steps"),
    [("long_32k.yaml", 32768, 72, 2_000_000, 20_000), ("long_64k.yaml", 65536, 36, 5_000_000, 22_000)],
)
def test_long_context_runs_have_their_published_settings(file: str, length: int, batch: int, theta: int, steps: int) -> None:
    run = config(file)
    assert (run.data.sequence_length, run.train.global_batch_size, run.train.micro_batch_size) == (length, batch, 1)
    assert run.tokens_per_step == 2_359_296  # as in the 4k run
    assert (run.model.rope_theta, run.model.num_layers, run.model.layers_without_rope[0]) == (theta, 36, 3)
    assert (run.parallel.tensor, run.parallel.pipeline, run.parallel.context) == (2, 1, 4)
    assert run.parallel.recompute == ("full" if length == 65536 else "none")
    assert run.train.global_batch_size % 12 == 0  # 96 GPUs leave a data-parallel size of 12
    assert run.train_steps == steps
    rates = {step: learning_rate(run.optim, steps, step) for step in (500, 1000, (1000 + steps) // 2, steps)}
    assert list(rates.values()) == pytest.approx([1e-5, 2e-5, 1e-5, 0.0], abs=1e-12)


def test_each_run_starts_where_the_one_before_ends() -> None:
    pretrain, short, long = map(config, ("pretrain.yaml", "long_32k.yaml", "long_64k.yaml"))
    assert short.start_from and long.start_from
    assert short.start_from.checkpoint == pretrain.train.output_dir
    assert long.start_from.checkpoint == short.train.output_dir
    assert (short.start_from.optimizer, long.start_from.optimizer) == (True, False)
    assert not short.start_from.data_position and not long.start_from.data_position  # windows of another length
    assert len({run.train.output_dir for run in (pretrain, short, long)}) == 3


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("dclm", (0.37, 0.33, 0.3, 0.2686434, 0.2466434)),
        ("wiki", (0.001, 0.001, 0.0002, 0.0001791, 0.0001791)),
        ("stack-edu-real-Python", (None, None, None, 0.080593, 0.0646834)),
        ("jupyter-scripts", (0.0055, 0.01, 0.012, 0.0107457, None)),
        ("Wiki_MCQ_final_14M", (None, None, None, None, 0.04)),
    ],
)
def test_weights_as_published(name: str, weights: tuple[float | None, ...]) -> None:
    stages = [stage for file in ("pretrain.yaml", "long_32k.yaml", "long_64k.yaml") for stage in config(file).data.stages]
    assert tuple(stage.weights.get(name) for stage in stages) == weights


def test_what_the_mixtures_repeat_too_often_is_named() -> None:
    (repeated,) = (warning for warning in planned("pretrain.yaml").warnings if "more than 4 times" in warning)
    assert "stackexchange (29.6)" in repeated
    assert "finemath-4plus (6.9)" in repeated
    assert "fineweb-edu" not in repeated
    (rare,) = (warning for warning in planned("long_32k.yaml").warnings if "too small" in warning)
    assert "fw2-hq-vie_Latn 4.48e-05 (one window in 312 steps)" in rare
