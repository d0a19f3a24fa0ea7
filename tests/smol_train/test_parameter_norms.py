"""Norms of the weights by group. That layouts agree on them is shown in test_parallelism.py."""

import pytest
import telemetry_jobs
from ranks import Ranks

from smol_train.callbacks.parameter_norms import group_of


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("embedding.word_embeddings.weight", "embedding"),
        ("output_layer.weight", "head"),
        ("decoder.layers.3.input_layernorm.weight", "norm"),
        ("decoder.layers.3.self_attention.linear_qkv.layer_norm_weight", "norm"),
        ("decoder.layers.3.self_attention.q_layernorm.weight", "norm"),
        ("decoder.final_layernorm.weight", "norm"),
        ("decoder.layers.3.self_attention.linear_proj.weight", "attention"),
        ("decoder.layers.3.mlp.linear_fc1.weight", "mlp"),
        ("decoder.layers.3.something_new.weight", "other"),
    ],
)
def test_groups_go_by_the_names_in_checkpoints(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_in_one_group(tied: bool, ranks: Ranks, overrides: list[str]) -> None:
    settings = [f"model.tie_embeddings={str(tied).lower()}", "parallel.overlap=false"]
    [(groups, whole)] = ranks.run(telemetry_jobs.norms_by_hand, 1, overrides=[*overrides, *settings])
    assert set(groups) == {"embedding", "attention", "mlp", "norm"} | (set() if tied else {"head"})
    assert sum(norm**2 for norm in groups.values()) ** 0.5 == pytest.approx(whole, rel=1e-6)
