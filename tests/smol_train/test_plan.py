"""The plan against hand-computed figures, SmolLM3's published ones, and counts of a real module's parameters."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smol_config
from smol_config import ConfigError
from smol_model.config import ModelConfig
from smol_train.config import RunConfig
from smol_train.memory import device_memory, layer_activation_bytes, rows_in_flight, stage_matrices, stage_parameters
from smol_train.plan import dry_run, main, plan
from smol_train.plan_text import render

ROOT = Path(__file__).resolve().parents[2]
SMOLLM3 = str(ROOT / "configs/smollm3/pretrain.yaml")


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def smollm3(*overrides: str) -> RunConfig:
    return smol_config.load(RunConfig, SMOLLM3, overrides, keep_unset=True)


def small(**sections: dict[str, Any]) -> RunConfig:
    """8 layers of hidden 64 and ffn 128, 4 heads of 16 with 2 groups, vocabulary 96, 32-token windows."""
    mapping: dict[str, dict[str, Any]] = {
        "model": {
            "num_layers": 8,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "vocab_size": 96,
        },
        "data": {
            "tokenizer": "t",
            "sequence_length": 32,
            "datasets": {"a": "a", "b": "b"},
            "stages": [
                {"name": "one", "steps": 6, "weights": {"a": 1, "b": 0}},
                {"name": "two", "tokens": 1000, "weights": {"a": 1, "b": 2}},
            ],
        },
        "train": {"output_dir": "o", "global_batch_size": 16, "micro_batch_size": 2},
        "optim": {"learning_rate": 1.0, "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 2}},
        "parallel": {},
    }
    for name, section in sections.items():
        mapping[name] |= section
    return smol_config.parse(RunConfig, mapping, source="test")


def test_smollm3_is_planned_at_its_published_size_and_speed() -> None:
    result = plan(smollm3())
    assert result.parameters == 3_075_098_624
    assert result.flops_per_token == pytest.approx(22.07e9, rel=2e-4)
    assert result.flops_per_token_6nd == 6 * 3_075_098_624
    assert result.tokens_per_step == 2_359_296
    assert result.train_steps == 4_720_000
    assert result.train_tokens == 4_720_000 * 2_359_296
    assert (result.gpus, result.data_parallel, result.micro_batches_per_step) == (384, 192, 1)
    assert 13_000 < result.tokens_per_second_per_gpu < 14_000
    assert 23 < result.days < 26
    assert result.memory["bf16"].total < 80e9


def test_stages_follow_each_other_and_tokens_are_rounded_up_to_steps() -> None:
    result = plan(small())
    assert [(s.name, s.first_step, s.last_step, s.tokens, s.datasets) for s in result.stages] == [
        ("one", 1, 6, 6 * 512, 1),
        ("two", 7, 8, 2 * 512, 2),
    ]
    assert result.train_tokens == sum(stage.tokens for stage in result.stages)


RAMP = {
    "batch_ramp": [{"until_step": 2, "global_batch_size": 4}, {"until_step": 3, "global_batch_size": 8}],
}


def test_a_batch_ramp_is_planned_as_it_will_be_trained() -> None:
    config = small(train=RAMP, optim={"schedule": {"kind": "wsd", "decay_steps": 2, "batch_rule": "sqrt"}})
    result = plan(config)
    assert [(piece.first_step, piece.last_step, piece.tokens_per_step) for piece in result.batch_ramp] == [
        (1, 2, 128),
        (3, 3, 256),
    ]
    assert [(s.name, s.steps, s.tokens) for s in result.stages] == [("one", 6, 2 * 128 + 256 + 3 * 512), ("two", 2, 2 * 512)]
    assert result.train_tokens == sum(stage.tokens for stage in result.stages)
    assert [(mark.name, mark.step, mark.learning_rate) for mark in result.schedule][:3] == [
        ("first step", 1, 0.5),
        ("batch after 4", 3, math.sqrt(0.5)),
        ("batch after 8", 4, 1.0),
    ]
    assert result.data_parallel == 2  # what rows of the smallest batch can be shared by
    with pytest.raises(ConfigError, match=r"global_batch_size=16 and train.batch_ramp's \[4, 8\] in rows .* give 2"):
        plan(config, gpus=4)
    assert "128 in steps 1 to 2" in render(result, gpus_given=False)


def test_small_batches_of_a_ramp_take_longer_a_token() -> None:
    ramp = "train.batch_ramp=[{until_step: 2000000, global_batch_size: 192}]"
    plain = plan(smollm3("train.micro_batch_size=1"), gpus=384, gpu="h100")
    ramped = plan(smollm3("train.micro_batch_size=1", ramp), gpus=384, gpu="h100")
    assert ramped.train_tokens == plain.train_tokens - 2_000_000 * 384 * 4096
    assert ramped.days / ramped.train_tokens > plain.days / plain.train_tokens
    assert plain.hours * 3600 == pytest.approx(plain.train_steps * plain.seconds_per_step)


def test_landmarks_are_the_steps_where_the_schedule_bends() -> None:
    assert [(mark.name, mark.step, mark.learning_rate) for mark in plan(small()).schedule] == [
        ("first step", 1, 0.5),
        ("warm-up end", 2, 1.0),
        ("last step at the peak", 6, 1.0),
        ("decay start", 7, 0.5),
        ("end", 8, 0.0),
    ]


def test_hours_follow_from_work_and_assumed_speed() -> None:
    result = plan(small(), gpus=4, mfu=0.5, peak_tflops=2.0)
    seconds = result.train_tokens * result.flops_per_token / (4 * 0.5 * 2.0e12)
    assert result.hours * 3600 == pytest.approx(seconds)
    assert result.gpu_hours == pytest.approx(4 * result.hours)
    assert result.seconds_per_step * result.train_steps == pytest.approx(seconds)
    assert (result.data_parallel, result.micro_batches_per_step) == (4, 2)


def test_the_configured_peak_holds_unless_another_is_given() -> None:
    config = smollm3("logging.peak_tflops=312")
    assert plan(config).peak_tflops == 312
    assert plan(config, peak_tflops=500).peak_tflops == 500
    assert plan(smollm3()).peak_tflops == 989


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (7, r"gpus=7 is not a multiple of the 2 ranks .*parallel.tensor=2 x pipeline=1 x context=1\); give 6"),
        (400, "gpus=400 make 200 copies .*global_batch_size=576 .*micro_batch_size=3 .*give 384"),
    ],
)
def test_gpus_that_do_not_fit_are_refused_with_the_nearest_that_do(gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(smollm3(), gpus=gpus)


@pytest.mark.parametrize("arguments", [{"mfu": 0.0}, {"mfu": 1.1}, {"peak_tflops": 0.0}, {"peak_tflops": -1.0}])
def test_impossible_speeds_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"mfu=.* and peak_tflops="):
        plan(small(), **arguments)


# --- memory ------------------------------------------------------------------------------------------------------------


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


# --- commands ----------------------------------------------------------------------------------------------------------


def test_what_uploads_keep_on_disk_is_said() -> None:
    assert "uploaded to" not in render(plan(smollm3()), gpus_given=False)
    text = render(plan(smollm3("checkpoint.upload=${BUCKET}/runs")), gpus_given=False)
    assert "${BUCKET}/runs; one that has not arrived there stays on disk, whatever keep_last says" in text


def test_dry_run_as_json_is_one_object_with_the_plan_and_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(SMOLLM3, ["train.seed=7"], as_json=True) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    expected = {"parameters": 3_075_098_624, "tokens_per_step": 2_359_296, "train_steps": 4_720_000}
    assert {name: result[name] for name in expected} == expected
    assert {"flops_per_token", "flops_per_token_6nd", "train_tokens", "memory", "schedule", "stages", "hours"} < set(result)
    assert result["config"]["train"]["seed"] == 7
    assert "DATA_ROOT, RUN_ROOT" in err


def test_dry_run_as_text_starts_with_a_configuration_that_loads_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert dry_run(SMOLLM3, [], as_json=False) == 0
    text = capsys.readouterr().out
    resolved, _, figures = text.partition("\n\n")
    (tmp_path / "again.yaml").write_text(resolved, encoding="utf8")
    assert smol_config.load(RunConfig, tmp_path / "again.yaml", keep_unset=True) == smollm3()
    for figure in ("3,075,098,624", "22,073,573,376", "11.14 T tokens", "steps 4,198,001 to 4,720,000", "this run", "MFU 30%"):
        assert figure in figures


def test_set_variables_are_filled_in_and_not_noted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/somewhere")
    assert dry_run(SMOLLM3, [], as_json=False) == 0
    out, err = capsys.readouterr()
    assert "/somewhere/fineweb-edu" in out
    assert "RUN_ROOT" in err and "DATA_ROOT" not in err


def test_the_command_takes_gpus_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "--gpus", "96", "--json", "train.micro_batch_size=2", "--mfu", "0.4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["gpus"], result["micro_batches_per_step"], result["mfu"]) == (96, 6, 0.4)


def test_the_command_reports_a_fault_in_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "train.micro_batch=2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and "micro_batch_size" in err


def test_planning_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from smol_train import plan; "
        f"plan.dry_run({SMOLLM3!r}, [], as_json=True); "
        "sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stderr.decode()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m smol_train.plan --config configs/smollm3/pretrain.yaml --gpus 384" in capsys.readouterr().out
