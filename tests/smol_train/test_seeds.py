"""Initial weights differ on every tensor-parallel rank and pipeline stage and agree across data-parallel ranks."""

import jobs
import pytest
import torch
from ranks import Ranks

SPLIT = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight", "word_embeddings.weight")
"""Matrices that tensor-parallel ranks share out."""


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def check_tensor_parallel_shards_are_uncorrelated(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Independent draws of n numbers correlate by about 1/sqrt(n); five times that is never chance."""
    checked = 0
    for name in one:
        if name.endswith(SPLIT):
            assert abs(correlation(one[name], other[name])) < 5 / one[name].numel() ** 0.5, name
            checked += 1
    assert checked == 4 * 4 + 1


def test_tensor_parallel_ranks_draw_different_weights_and_data_parallel_ranks_the_same(
    ranks: Ranks, overrides: list[str]
) -> None:
    # Ranks 0 and 1 share a model, 2 and 3 share its data-parallel copy.
    weights = ranks.run(jobs.initial_weights, 4, overrides=[*overrides, "parallel.tensor=2"])
    check_tensor_parallel_shards_are_uncorrelated(weights[0], weights[1])
    for rank in (0, 1):
        for name, weight in weights[rank].items():
            assert torch.equal(weight, weights[rank + 2][name]), f"{name} differs between data-parallel copies"


def test_the_check_above_fails_when_every_rank_has_one_seed(ranks: Ranks, overrides: list[str]) -> None:
    weights = ranks.run(jobs.initial_weights, 2, overrides=[*overrides, "parallel.tensor=2"], one_seed=True)
    with pytest.raises(AssertionError):
        check_tensor_parallel_shards_are_uncorrelated(weights[0], weights[1])


def test_pipeline_stages_draw_different_weights(ranks: Ranks, overrides: list[str]) -> None:
    first, last = ranks.run(jobs.initial_weights, 2, overrides=[*overrides, "parallel.pipeline=2"])
    one = first["decoder.layers.0.mlp.linear_fc1.weight"]
    other = last["decoder.layers.2.mlp.linear_fc1.weight"]
    assert abs(correlation(one, other)) < 5 / one.numel() ** 0.5
