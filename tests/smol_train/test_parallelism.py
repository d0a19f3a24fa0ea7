"""Every layout trains the same model: same initial weights and data, same losses as one process.

Tolerances, fp32: a loss near 7 has a spacing of 4.8e-7, and another layout adds in another order, so over ten steps losses
may differ by a few spacings (seen: 4.8e-7 at most). The gradient norm is the root of a sum over all parameters, each with its
own rounding (seen: 1.9e-6 of about 1). A wrong gradient shows at 1e-3 and above.
"""

from pathlib import Path

import jobs
import pytest
from ranks import RankError, Ranks
from tiny_runs import QUICKSTART, tiny_overrides

from smol_config import load
from smol_train.config import RunConfig
from smol_train.memory import layer_activation_bytes

LOSS_TOLERANCE = 2e-6
NORM_TOLERANCE = 1e-5

LAYOUTS = {
    "TP2": (2, ["parallel.tensor=2"]),
    "TP2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "PP2": (2, ["parallel.pipeline=2"]),
    "DP2": (2, []),
    "DP2 with overlap": (2, ["parallel.overlap=true"]),
    "one process with overlap": (1, ["parallel.overlap=true"]),
    "PP2, interleaved": (2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]),
    "PP2, interleaved, x DP2 with overlap": (
        4,
        ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.overlap=true"],
    ),
    "TP2 x PP2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "one window a row": (1, ["train.micro_batch_size=1"]),
    "four windows a row": (1, ["train.micro_batch_size=4"]),
}


@pytest.fixture(scope="module")
def initial(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initial") / "weights"
    ranks.run(jobs.save_initial_weights, 1, overrides=tiny_overrides(corpus, folder), folder=folder)
    return folder


def start_from(initial: Path) -> list[str]:
    start = [f"start_from.checkpoint={initial}", "start_from.optimizer=false", "start_from.data_position=false"]
    return ["optim.learning_rate=1.0e-3", "logging.parameter_norms_every_steps=5", *start]


@pytest.fixture(scope="module")
def reference(ranks: Ranks, corpus: Path, initial: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    overrides = tiny_overrides(corpus, tmp_path_factory.mktemp("reference"))
    [result] = ranks.run(jobs.train, 1, overrides=[*overrides, *start_from(initial)], evaluate=True)
    assert result["loss"][-1] < result["loss"][0] - 0.2, "the reference must learn for the comparison to mean anything"
    return result


def named(step: dict[str, float], prefix: str) -> dict[str, float]:
    return {name: value for name, value in step.items() if name.startswith(prefix)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_one_process(
    layout: str, ranks: Ranks, overrides: list[str], initial: Path, reference: dict
) -> None:
    world_size, settings = LAYOUTS[layout]
    results = ranks.run(jobs.train, world_size, overrides=[*overrides, *start_from(initial), *settings], evaluate=True)
    for result in results:
        assert result["loss"] == pytest.approx(reference["loss"], abs=LOSS_TOLERANCE)
        for step, expected in zip(result["steps"], reference["steps"], strict=True):
            assert named(step, "train/loss/") == pytest.approx(named(expected, "train/loss/"), abs=LOSS_TOLERANCE)
            weights = named(expected, "train/parameter_norm/")
            assert named(step, "train/parameter_norm/") == pytest.approx(weights, rel=NORM_TOLERANCE)
        assert len(weights) == 4 and len(named(expected, "train/loss/")) == 2
        assert result["grad_norm"] == pytest.approx(reference["grad_norm"], abs=NORM_TOLERANCE)
        for held_out in ("eval/loss/code", "eval/loss/docs"):
            assert result["steps"][-1][held_out] == pytest.approx(reference["steps"][-1][held_out], abs=LOSS_TOLERANCE)


SHORT = ["data.stages.0.steps=2", "data.stages.1.steps=1", "optim.schedule.warmup_steps=1", "optim.schedule.decay_steps=1"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["one process", "TP2 with sequence parallelism", "PP2"])
def test_recomputation_changes_no_bit(layout: str, precision: str, ranks: Ranks, overrides: list[str]) -> None:
    world_size, settings = LAYOUTS.get(layout, (1, []))
    shared = [*overrides, *SHORT, *settings, f"train.precision={precision}"]
    kept, inner, whole = (
        ranks.run(jobs.train, world_size, overrides=[*shared, f"parallel.recompute={recompute}"])
        for recompute in ("none", "selective", "full")
    )
    assert inner == kept
    assert whole == kept


def test_recomputation_runs_mlps_or_whole_layers_once_more(ranks: Ranks, overrides: list[str]) -> None:
    once = 4 * 4 * 3  # layers x micro-batches x steps
    for recompute, attention, mlp in (("none", 1, 1), ("selective", 1, 2), ("full", 2, 2)):
        settings = [*overrides, *SHORT, f"parallel.recompute={recompute}"]
        [counts] = ranks.run(jobs.forward_counts, 1, overrides=settings)
        assert counts == {"self_attention": attention * once, "mlp": mlp * once}, recompute


def test_recomputation_keeps_at_least_as_much_less_as_the_plan_says(ranks: Ranks, overrides: list[str]) -> None:
    kept, planned = {}, {}
    for recompute in ("none", "selective", "full"):
        settings = [*overrides, f"parallel.recompute={recompute}"]
        [kept[recompute]] = ranks.run(jobs.bytes_for_backward, 1, overrides=settings)
        model = load(RunConfig, QUICKSTART, settings).model
        planned[recompute] = 4 * 128 * layer_activation_bytes(model, 1, False, 4, recompute)  # layers x tokens of a row
    for recompute in ("selective", "full"):
        assert kept["none"] - kept[recompute] >= planned["none"] - planned[recompute]


def test_an_interleaved_pipeline_refuses_micro_batches_that_it_cannot_group(ranks: Ranks, overrides: list[str]) -> None:
    settings = ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.global_batch_size=12"]
    with pytest.raises(RankError, match=r"global_batch_size=12 \(stage 'stable'\) gives each of 2 .* ranks 3 micro-batches"):
        ranks.run(jobs.train, 4, overrides=[*overrides, *settings])


def test_context_parallelism_without_transformer_engine_is_refused(ranks: Ranks, overrides: list[str]) -> None:
    """Also where `backend: auto` came to torch, which the configuration alone cannot know."""
    with pytest.raises(RankError, match=r"ConfigError: parallel.context=2 needs Transformer Engine's attention, and .* torch"):
        ranks.run(jobs.train, 2, overrides=[*overrides, "parallel.context=2", "train.backend=auto"])


def test_tied_copies_under_pipeline_parallelism_stay_bit_equal(ranks: Ranks, overrides: list[str]) -> None:
    settings = ["parallel.pipeline=2", "optim.weight_decay=0.5"]
    first, last = ranks.run(jobs.train, 2, overrides=[*overrides, *settings])
    name = "embedding.word_embeddings.weight"
    assert first["weights"][name] == last["weights"][name]


def test_tied_copies_drift_when_only_one_is_exempt_from_weight_decay(ranks: Ranks, overrides: list[str]) -> None:
    """The fault that the test above guards against, shown to be visible: patterns on in-memory names miss the last copy."""
    settings = ["parallel.pipeline=2", "optim.weight_decay=0.5"]
    first, last = ranks.run(jobs.train_with_in_memory_names, 2, overrides=[*overrides, *settings])
    name = "embedding.word_embeddings.weight"
    assert first["weights"][name] != last["weights"][name]
