"""The te backend without a GPU: its parameters, its checkpoints and its options, compared with the torch backend's.

No kernel runs. docs/results/te_structure.md has the environment's recipe and says what was checked by reading instead.
"""

from pathlib import Path

import pytest
import te_jobs
from ranks import Ranks
from te_jobs import MODELS


def transformer_engine_imports() -> bool:
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception:  # an installation for another CUDA raises OSError or RuntimeError
        return False
    return True


pytestmark = [
    pytest.mark.te,
    pytest.mark.skipif(not transformer_engine_imports(), reason="transformer_engine does not import here"),
]


@pytest.fixture(scope="module")
def structure(ranks: Ranks) -> dict[str, dict]:
    [found] = ranks.run(te_jobs.structure, 1)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_fused_into_the_linears_that_follow_them(name: str, structure: dict[str, dict]) -> None:
    model, found = MODELS[name], structure[name]
    norms = {key for key in found["shapes"] if "norm" in key}
    fused = ["self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"]
    if model.qk_norm:
        fused += ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"]
    layers = {f"decoder.layers.{layer}.{norm}" for layer in range(model.num_layers) for norm in fused}
    assert norms == {*layers, "decoder.final_layernorm.weight"}
    assert found["final norm"] == "transformer_engine.pytorch.module.rmsnorm.RMSNorm"
    assert found["epsilons"] == {model.norm_epsilon}


@pytest.mark.parametrize("name", MODELS)
def test_the_te_network_has_as_many_parameters_as_its_config_says(name: str, structure: dict[str, dict]) -> None:
    assert structure[name]["parameters"] == MODELS[name].parameters
    assert ("output_layer.weight" in structure[name]["shapes"]) == (not MODELS[name].tie_embeddings)


@pytest.mark.parametrize("name", MODELS)
def test_both_backends_have_the_same_sharded_keys_and_shapes(name: str, structure: dict[str, dict]) -> None:
    sharded = structure[name]["sharded"]
    assert sharded["te"] == sharded["torch"]


def test_both_backends_have_the_same_shards_on_every_tensor_parallel_rank(ranks: Ranks) -> None:
    first, second = ranks.run(te_jobs.structure, 2, tensor=2, sequence=True)
    for found in (first, second):
        for name in MODELS:
            assert found[name]["sharded"]["te"] == found[name]["sharded"]["torch"]
            norms = {key for key in found[name]["shapes"] if "norm" in key}
            assert found[name]["sequence parallel"] >= norms, "their gradients are summed over the ranks by this mark"
    assert first["untied embeddings"]["sharded"] != second["untied embeddings"]["sharded"]


@pytest.mark.parametrize("saved_by", ["torch", "te"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_one_backend_load_into_the_other(name: str, saved_by: str, ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(te_jobs.exchange, 1, folder=tmp_path / "weights", name=name, saved_by=saved_by) == [[]]


@pytest.mark.parametrize("saved_by", ["torch", "te"])
def test_weights_of_one_backend_load_into_the_other_under_tensor_parallelism(
    saved_by: str, ranks: Ranks, tmp_path: Path
) -> None:
    differing = ranks.run(
        te_jobs.exchange, 2, folder=tmp_path / "weights", name="untied embeddings", saved_by=saved_by, tensor=2
    )
    assert differing == [[], []]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("saved_by", ["torch", "te"])
def test_fully_reshardable_optimizer_state_of_one_backend_loads_into_the_other(
    saved_by: str, precision: str, ranks: Ranks, tmp_path: Path
) -> None:
    """The te backend's with Transformer Engine's FusedAdam, the torch backend's with smol_train's AdamW."""
    [found] = ranks.run(te_jobs.exchange_optimizer, 1, folder=tmp_path / "run", saved_by=saved_by, precision=precision)
    names = {key.split(".", 3)[3] for key in found["keys"]}
    kinds = ("param", "exp_avg", "exp_avg_sq")
    assert found["keys"] == sorted(f"optimizer.state.{kind}.{name}" for kind in kinds for name in names)
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in names
    assert found["differing"] == []
    assert set(found["steps"]) == {3}


def test_flat_optimizer_state_is_in_another_order_on_the_other_backend(ranks: Ranks) -> None:
    """Why a dp_reshardable save, which stores the flat buffers, must not be resumed on the other backend: nothing about
    its shapes is wrong there, and every moment would belong to another parameter."""
    [orders] = ranks.run(te_jobs.flat_orders, 1)
    assert sorted(orders["torch"]) == sorted(orders["te"])
    assert orders["torch"] != orders["te"]


@pytest.mark.parametrize("apex", [True, False])
def test_every_fusion_is_on(apex: bool, ranks: Ranks) -> None:
    [chosen] = ranks.run(te_jobs.kernel_options, 1, apex=apex)
    assert chosen == {
        "apply_rope_fusion": True,
        "bias_activation_fusion": True,
        "bias_dropout_fusion": True,
        "cross_entropy_loss_fusion": True,
        "cross_entropy_fusion_impl": "te",
        "gradient_accumulation_fusion": apex,
    }
