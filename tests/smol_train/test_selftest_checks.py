"""The self-test's checks of isolation, seeds and throughput: passed by a sound trainer, failed with a fault put in."""

import numpy as np
import pytest
from selftest_jobs import MakeSetting

from smol_train.selftests import isolation, seeds, throughput

# --- isolation -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [(1, ["train.precision=bf16"]), (2, ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=1"])],
)
def test_documents_are_isolated(make_setting: MakeSetting, world_size: int, settings: list[str]) -> None:
    found = isolation.check(make_setting(world_size, *settings))
    assert found.outcome == "passed", found
    assert found.figures["control"] > 10 * isolation.ALONE["bf16"] > found.figures["alone"]


def test_attention_across_documents_fails(make_setting: MakeSetting) -> None:
    found = isolation.check(make_setting(1, fault="no_document_mask"))
    assert found.outcome == "failed"
    assert "other tokens in document 0 change the losses of document 2" in found.summary
    assert "from those of each document alone" in found.summary


def test_a_configuration_without_document_mask_fails(make_setting: MakeSetting) -> None:
    found = isolation.check(make_setting(1, "data.document_mask=false"))
    assert found.outcome == "failed" and found.summary == (
        "data.document_mask=false: documents of a window see each other by configuration"
    )
    assert found.figures["leaks"]


def test_an_isolation_check_that_would_see_no_leak_fails(make_setting: MakeSetting) -> None:
    found = isolation.check(make_setting(1, fault="always_masked"))
    assert found.outcome == "failed" and found.summary.startswith("blind: ")


# --- seeds -----------------------------------------------------------------------------------------------------------------


def test_initial_weights_differ_and_agree_where_they_must(make_setting: MakeSetting) -> None:
    found = seeds.check(make_setting(4, "parallel.tensor=2"))
    assert found.outcome == "passed", found
    assert [line.split(":")[0] for line in found.details] == ["TP2 x DP2", "TP2 with SP", "PP4", "DP4", "TP2 x PP2 with SP"]


def test_one_seed_on_all_tensor_parallel_ranks_fails_and_is_named(make_setting: MakeSetting) -> None:
    found = seeds.check(make_setting(2, "parallel.tensor=2", fault="one_seed"))
    assert found.outcome == "failed"
    assert "word_embeddings.weight was drawn alike on ranks 0 and 1 (correlation 1.00)" in found.summary


def test_seeds_are_skipped_on_one_rank(make_setting: MakeSetting) -> None:
    assert seeds.check(make_setting(1)).outcome == "skipped"


def rank_weights(tensor: int, pipeline: int, copy: int, values: dict[str, np.ndarray], split: bool) -> seeds.RankWeights:
    held = {name: seeds.Weight(split, str(value.sum()), value.astype(np.float32)) for name, value in values.items()}
    return seeds.RankWeights(tensor, pipeline, (copy, 0), held)


def test_weights_are_compared_by_what_their_ranks_share() -> None:
    draw = np.random.default_rng(0).standard_normal
    first, second = "decoder.layers.0.mlp.weight", "decoder.layers.2.mlp.weight"
    one, other = draw(1000), draw(1000)
    stage = rank_weights(0, 0, 0, {first: one}, split=True)
    assert seeds.compare([stage, rank_weights(0, 1, 0, {second: other}, split=True)]) == (1, 0, "")
    alike = seeds.compare([stage, rank_weights(0, 1, 0, {second: one}, split=True)])
    assert f"{first} (against {second}) was drawn alike" in alike.fault
    assert seeds.compare([stage, rank_weights(0, 0, 1, {first: one}, split=True)]) == (0, 1, "")
    copies = seeds.compare([stage, rank_weights(0, 0, 1, {first: other}, split=True)])
    assert copies.fault == f"{first} differs on ranks 0 and 1, which hold the same weights"
    whole = seeds.compare([rank_weights(tensor, 0, 0, {first: draw(10)}, split=False) for tensor in (0, 1)])
    assert "differs on ranks 0 and 1" in whole.fault


# --- throughput ------------------------------------------------------------------------------------------------------------


def test_throughput_is_taken_of_each_part(make_setting: MakeSetting) -> None:
    found = throughput.check(make_setting(2, "parallel.tensor=2", steps=3))
    rates, shares = found.figures["tokens_per_second"], found.figures["shares"]
    assert list(rates) == ["synthetic", "full", "loader", "loader at step 10,000,000"] and all(rates.values())
    assert sum(shares.values()) == pytest.approx(1) and 0 < shares["communication"] < 1


def test_a_slow_loader_is_named(make_setting: MakeSetting) -> None:
    found = throughput.check(make_setting(1, "train.global_batch_size=2", fault="slow_loader", steps=2))
    assert found.outcome == "failed" and found.summary.startswith("data is slow: ")
    assert found.figures["slowest"] == "data"


def figures(wall: float, data_wait: float = 0.0, outside: float = 0.0) -> dict[str, float]:
    return {"wall": wall, "data_wait": data_wait, "outside": outside}


@pytest.mark.parametrize(
    ("full", "communication", "slowest", "fault"),
    [
        (figures(1.0), 0.2, "compute", ""),
        (figures(1.0), 0.7, "communication", ""),
        (figures(1.0, data_wait=0.3, outside=0.2), 0.2, "data", "data is slow: 30% of a step; at most 10%; callbacks is slow"),
        (figures(1.0, outside=0.2), 0.9, "callbacks", "callbacks is slow: 20%"),
    ],
)
def test_the_part_that_holds_the_step_back_is_named(
    full: dict[str, float], communication: float, slowest: str, fault: str
) -> None:
    loader = [{"data_rank": rank, "first_batch_seconds": 0.1, "tokens_per_second": 500.0} for rank in (0, 0, 1)]
    synthetic = [{**figures(0.8), "communication_share": share} for share in (0.1, communication)]
    found = throughput.judge(100, synthetic, loader, loader, [full, figures(0.9)])
    assert found.figures["slowest"] == slowest
    assert found.figures["tokens_per_second"] == {
        "synthetic": 125.0,
        "full": 100.0,
        "loader": 1000.0,
        "loader at step 10,000,000": 1000.0,
    }
    assert (found.outcome == "failed") == bool(fault) and fault in found.summary
    late = [{**one, "first_batch_seconds": 60.0} for one in loader]
    assert "slow to start" in throughput.judge(100, synthetic, loader, late, [full]).summary
