"""The network on the torch backend: what is built, how it starts, and what its attention and its loss compute."""

import model_jobs
import numpy as np
import pytest
from model_jobs import tiny
from ranks import Ranks

MODELS = {
    "SmolLM3's architecture": tiny(),
    "multi-head attention": tiny(num_query_groups=None),
    "multi-query attention": tiny(num_query_groups=1),
    "untied embeddings": tiny(tie_embeddings=False),
    "query and key norms": tiny(qk_norm=True),
    "biases on queries, keys and values": tiny(qkv_bias=True),
    "a head width of its own": tiny(head_dim=32),
    "rotary embedding everywhere": tiny(no_rope=None),
    "no rotary embedding on listed layers": tiny(no_rope=[0, 2]),
}


def test_the_network_has_as_many_parameters_as_its_config_says(ranks: Ranks) -> None:
    [built] = ranks.run(model_jobs.parameter_counts, 1, models=MODELS)
    assert built == {name: model.parameters for name, model in MODELS.items()}


def test_initial_weights_have_the_configured_standard_deviation(ranks: Ranks) -> None:
    """Residual outputs are smaller by sqrt(2 * layers). The smallest matrix has 65,536 elements, so its sample standard
    deviation lies within 0.3 % of the true one in two cases of three; 1.5 % is five times that."""
    model = tiny(hidden_size=256, ffn_hidden_size=512, vocab_size=512, num_query_groups=4, init_std=0.03, tie_embeddings=False)
    [statistics] = ranks.run(model_jobs.initial_statistics, 1, model=model)
    residual = model.init_std / (2 * model.num_layers) ** 0.5
    matrices = {name: value for name, value in statistics.items() if "norm" not in name}
    assert len(matrices) == 2 + 4 * model.num_layers
    for name, (mean, deviation) in matrices.items():
        wanted = residual if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else model.init_std
        assert deviation == pytest.approx(wanted, rel=0.015), name
        assert abs(mean) < 0.02 * wanted, name
    assert {value for name, value in statistics.items() if "norm" in name} == {(1.0, 0.0)}


@pytest.mark.parametrize("no_rope", [None, 2, [0, 3]])
def test_attention_depends_on_the_order_of_tokens_exactly_on_layers_with_rotary_embedding(
    no_rope: int | list[int] | None, ranks: Ranks
) -> None:
    model = tiny(no_rope=no_rope)
    [effects] = ranks.run(model_jobs.effect_of_order, 1, model=model)
    for layer, effect in enumerate(effects):
        if layer in model.layers_without_rope:
            assert effect < 1e-6, f"layer {layer} sees positions"  # float32 outputs of about 1, summed in another order
        else:
            assert effect > 1e-2, f"layer {layer} sees no positions"


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_query_heads_read_their_group_inside_their_document(heads: int, groups: int, ranks: Ranks) -> None:
    [errors] = ranks.run(model_jobs.packed_attention_errors, 1, heads=heads, groups=groups)
    assert errors == pytest.approx({"packed": 0, "varlen": 0, "dense": 0}, abs=2e-6)


@pytest.mark.parametrize("tensor", [1, 2])
def test_z_loss_equals_the_reference_while_training_and_is_absent_in_evaluation(tensor: int, ranks: Ranks) -> None:
    """Losses are near 100, where float32's spacing is 7.6e-6; gradients are near 1."""
    for errors in ranks.run(model_jobs.z_loss_errors, tensor, tensor=tensor, coefficient=1e-3):
        assert errors["z-loss"] > 1, "the z-loss must be large for the comparison to mean anything"
        assert errors["loss"] < 5e-5
        assert errors["gradient"] < 2e-6
        assert errors["eval loss"] < 5e-5
        assert errors["eval gradient"] < 2e-6


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "qk_norm": True, "qkv_bias": True}], ids=["tied", "untied, norms, biases"]
)
def test_logits_do_not_depend_on_tensor_parallelism(changes: dict, ranks: Ranks) -> None:
    """float32 logits of about 1; the ranks' parts of a row-parallel product are added in another order (seen: 1e-6)."""
    [alone] = ranks.run(model_jobs.gathered_logits, 1, tensor=1, **changes)
    assert alone.shape == (64, model_jobs.VOCABULARY) and np.abs(alone).mean() > 0.3
    for sequence in (False, True):
        for shared in ranks.run(model_jobs.gathered_logits, 2, tensor=2, sequence=sequence, **changes):
            np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-5)


def test_yarn_is_refused_where_it_would_compute_something_else() -> None:
    from smol_config import ConfigError
    from smol_model.spec import build_model, transformer_config

    model = tiny()
    config = transformer_config(model, "torch")
    with pytest.raises(ConfigError, match=r"yarn_factor=2.0 on the te backend computes something else"):
        build_model(model, config, "te", sequence_length=64, yarn_factor=2.0)
    with pytest.raises(ConfigError, match=r"yarn_factor=2.0 with model.llama3_rope_factor=8.0"):
        build_model(tiny(llama3_rope_factor=8.0), config, "torch", sequence_length=64, yarn_factor=2.0)


def test_gradient_accumulation_fusion_follows_apex_and_is_said_once(ranks: Ranks) -> None:
    [(options, lines)] = ranks.run(model_jobs.gradient_accumulation_fusion, 1, installed=True)
    assert options == [True] * 3 and lines == ["gradient accumulation fusion is on"]
    [(options, [line])] = ranks.run(model_jobs.gradient_accumulation_fusion, 1, installed=False)
    assert options == [False] * 3
    assert line.startswith("gradient accumulation fusion is off: apex's fused_weight_gradient_mlp_cuda does not import")
