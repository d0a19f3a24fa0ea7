"""The plan's memory against hand-computed figures and counts of a real module's parameters."""

import pytest
from plan_parts import SMOLLM3, small, smollm3

from smol_config import ConfigError
from smol_model.config import ModelConfig
from smol_train.memory import device_memory, layer_activation_bytes, rows_in_flight, stage_matrices, stage_parameters
from smol_train.plan import main, plan


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_one_device_holds_all_parameters_and_states() -> None:
    config = small()
    n = config.model.parameters
    bf16, fp32 = (device_memory(config, precision, 1) for precision in ("bf16", "fp32"))
    assert (bf16.weights, bf16.gradients, bf16.optimizer) == (2 * n, 4 * n, 12 * n)
    assert (fp32.weights, fp32.gradients, fp32.optimizer) == (4 * n, 4 * n, 8 * n)
    assert bf16.total == bf16.weights + bf16.gradients + bf16.optimizer + bf16.activations + bf16.logits


@pytest.mark.parametrize("name", ["muon", "ademamix"])
def test_muon_and_ademamix_keep_their_states_whole_on_every_data_parallel_rank(name: str) -> None:
    config = small(optim={"learning_rate": 1.0, "optimizer": name})
    n = config.model.parameters
    outside = 96 * 64 + 8 * 2 * 64 + 64  # embedding, tied head; two norms a layer; the last norm
    states = 16 * n if name == "ademamix" else 8 * (n - outside) + 12 * outside
    assert device_memory(config, "bf16", 1).optimizer == device_memory(config, "bf16", 4).optimizer == states
    cost = plan(config).checkpoint
    assert cost.disk_bytes == 2 * n + states
    assert [(save.sharding, save.pause_seconds) for save in cost.saves] == [("fully_reshardable", 0.0)]


def test_the_optimizer_is_shared_by_the_data_and_context_parallel_ranks() -> None:
    whole = device_memory(small(), "bf16", 1).optimizer
    assert device_memory(small(), "bf16", 4).optimizer == whole // 4
    assert device_memory(small(parallel={"context": 2}), "bf16", 4).optimizer == whole // 8


def test_activations_of_a_layer_match_a_count_by_hand() -> None:
    model = small().model
    # norms: 4 x 64; query, key, value, output: 64 + 32 + 32 + 64; gate, up, product: 3 x 128; log-sum-exp: 4 bytes x 4 heads
    assert layer_activation_bytes(model, 1, False, 2) == 2 * (256 + 192 + 384) + 16
    assert layer_activation_bytes(model, 2, False, 2) == 2 * (256 + (192 + 384) // 2) + 8
    assert layer_activation_bytes(model, 2, True, 2) == 2 * (256 + 192 + 384) // 2 + 8


def test_a_gelu_layer_would_need_what_the_paper_says() -> None:
    """Korthikanti et al.: 34 sbh + 5 as^2b bytes; less 2 sbh of dropout masks and the score matrix, 32 sbh. A model whose three
    ffn-wide tensors are as large as the paper's two of width 4h (ffn = 8h / 3) must come to the same."""
    model = ModelConfig(num_layers=1, hidden_size=96, ffn_hidden_size=256, num_attention_heads=1, vocab_size=8)
    assert layer_activation_bytes(model, 1, False, 2) - 4 == 32 * 96


def test_logits_are_counted_once_on_the_last_stage() -> None:
    row = 2 * 32
    assert device_memory(small(), "bf16", 1).logits == row * 96 * 6
    assert device_memory(small(), "fp32", 1).logits == row * 96 * 4
    assert device_memory(small(parallel={"tensor": 2}), "bf16", 1).logits == row * 48 * 6


def test_the_first_pipeline_stage_holds_the_activations_of_the_rows_in_flight() -> None:
    config = small(parallel={"pipeline": 4})
    memory = device_memory(config, "bf16", 1)
    assert (memory.pipeline_stage, memory.micro_batches_in_flight, memory.logits) == (0, 4, 0)
    assert memory.activations == 4 * 64 * 2 * layer_activation_bytes(config.model, 1, False, 2)
    assert device_memory(config, "bf16", 8).micro_batches_in_flight == 1  # one row a step: nothing else can be in flight


def test_recomputation_keeps_no_mlp_or_only_the_inputs_of_layers_and_one_layer_at_a_time() -> None:
    model = small().model
    assert layer_activation_bytes(model, 1, False, 2, "selective") == 2 * (256 + 192) + 16
    assert layer_activation_bytes(model, 2, True, 2, "selective") == 2 * (256 + 192) // 2 + 8
    assert layer_activation_bytes(model, 1, False, 2, "full") == 2 * 64
    assert layer_activation_bytes(model, 2, True, 2, "full") == 2 * 32
    last_norm = 2 * 64 * 2
    selective, full = (device_memory(small(parallel={"recompute": name}), "bf16", 1) for name in ("selective", "full"))
    assert selective.activations == 64 * (8 * (2 * (256 + 192) + 16) + 2 * 384 + last_norm)
    assert full.activations == 64 * (8 * 128 + 2 * (256 + 192 + 384) + 16 - 128 + last_norm)


def test_chunks_of_an_interleaved_pipeline_keep_more_rows_of_fewer_layers() -> None:
    config = small(parallel={"pipeline": 2, "virtual_pipeline": 2})
    memory = device_memory(config, "bf16", 1)
    assert (memory.pipeline_stage, memory.micro_batches_in_flight) == (0, 2 * 1 + 1 * 2 + 1)
    assert memory.activations == 5 * 64 * 2 * layer_activation_bytes(config.model, 1, False, 2)  # chunks of two layers
    assert device_memory(config, "bf16", 4).micro_batches_in_flight == 4  # two rows a step, each in both chunks
    assert rows_in_flight(config.parallel, 1, 8) == 3


def test_an_interleaved_run_plans_on_groups_of_micro_batches(capsys: pytest.CaptureFixture[str]) -> None:
    config = small(parallel={"pipeline": 2, "virtual_pipeline": 2})
    result = plan(config)
    assert (result.gpus, result.data_parallel, result.micro_batches_per_step) == (8, 4, 2)
    with pytest.raises(ConfigError, match=r"gpus=16 give each rank 1 micro-batches a step, no multiple of parallel.pipeline=2"):
        plan(config, gpus=16)
    overrides = ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.recompute=full"]
    assert main(["--config", SMOLLM3, "--gpus", "64", *overrides]) == 0
    out = capsys.readouterr().out
    assert "pipeline interleaved: 2 model chunks a stage" in out and "activations recomputed: full" in out


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("qk_norm", "qkv_bias"), [(False, False), (True, False), (False, True)])
def test_stage_parameters_add_up_to_the_model(tie: bool, qk_norm: bool, qkv_bias: bool) -> None:
    model = small(model={"tie_embeddings": tie, "qk_norm": qk_norm, "qkv_bias": qkv_bias}).model
    plain = small(model={"tie_embeddings": tie}).model
    assert model.flops_per_token(64) == plain.flops_per_token(64), "of matrices only"
    assert stage_matrices(model, 1, 1) == stage_matrices(plain, 1, 1)
    assert stage_parameters(model, 1, 1, 0) == model.parameters
    copies = model.embedding_parameters if tie else 0  # the last stage keeps a copy of a tied embedding
    assert sum(stage_parameters(model, 1, 4, stage) for stage in range(4)) == model.parameters + copies
    norms = 8 * (2 * 64 + (32 if qk_norm else 0)) + 64
    assert 2 * stage_parameters(model, 2, 1, 0) == model.parameters + norms


def test_a_stage_end_save_is_dearer_than_a_periodic_one_except_in_fp32() -> None:
    periodic, fully = plan(smollm3()).checkpoint.saves
    assert (periodic.sharding, periodic.pause_seconds, periodic.host_bytes_per_rank) == ("dp_reshardable", 0, 0)
    assert fully.sharding == "fully_reshardable"
    assert fully.host_bytes_per_rank == 27 * plan(smollm3()).memory["bf16"].parameters
    assert fully.pause_seconds == pytest.approx(12.0 / 117e6 * 1_537_624_064)
    assert {save.sharding for save in plan(smollm3("train.precision=fp32")).checkpoint.saves} == {"fully_reshardable"}


def test_a_checkpoint_holds_weights_and_three_states() -> None:
    config = small()
    assert plan(config).checkpoint.disk_bytes == 14 * config.model.parameters
    assert "measurement" in plan(config).checkpoint.basis
