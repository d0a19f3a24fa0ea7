"""The throughput model: each term against a figure by hand, the whole against the published run that it is calibrated on."""

from pathlib import Path
from typing import Any

import pytest

import smol_config
from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.gpus import GPUS, find_gpu
from smol_train.speed import (
    KERNEL_SHARE,
    StepTime,
    attention_seconds,
    context_parallel_seconds,
    data_parallel_seconds,
    elementwise_seconds,
    group_bandwidth,
    layer_matmuls,
    linear_seconds,
    matmul_seconds,
    mean_attended,
    optimizer_seconds,
    pipeline_bubble,
    pipeline_transfer_seconds,
    ring_seconds,
    step_time,
    swiglu_seconds,
    tensor_parallel_seconds,
)

ROOT = Path(__file__).resolve().parents[2]
H100 = GPUS["h100"]
PARTS = sorted(set(StepTime.model_fields) - {"gpu", "total", "tokens_per_second_per_gpu", "mfu"})


def smollm3(*overrides: str) -> RunConfig:
    return smol_config.load(RunConfig, ROOT / "configs/smollm3/pretrain.yaml", overrides, keep_unset=True)


def seconds(gpus: int = 384, *overrides: str, **options: Any) -> StepTime:
    return step_time(smollm3(*overrides), gpus, H100, **options)


def test_smollm3_lands_on_the_throughput_that_its_makers_published() -> None:
    assert 13_500 < seconds().tokens_per_second_per_gpu < 14_000
    assert 0.30 < seconds().mfu < 0.315


def test_without_its_calibration_the_model_is_far_too_hopeful_and_says_by_how_much() -> None:
    assert seconds(kernel_share=1.0).tokens_per_second_per_gpu == pytest.approx(24_272, abs=1)


def test_the_parts_add_up_to_the_step_and_the_step_to_the_rate() -> None:
    result = seconds(192, "parallel.pipeline=2")
    assert sum(getattr(result, part) for part in PARTS) == pytest.approx(result.total)
    assert result.tokens_per_second_per_gpu * 192 * result.total == pytest.approx(576 * 4096)
    assert min(getattr(result, part) for part in ("matmuls", "pipeline_transfers", "pipeline_bubble", "tensor_parallel")) > 0


# --- kernels -------------------------------------------------------------------------------------------------------------


def test_a_large_product_runs_at_the_achievable_rate_and_a_thin_one_at_memory_speed() -> None:
    n = 128 * 132  # whole tiles in whole waves
    assert matmul_seconds(H100, n, n, n) == pytest.approx(2 * n**3 / H100.matmul_rate)
    thin = 2 * (n * 32 + 32 * n + n * n)  # most of it the output
    assert matmul_seconds(H100, n, n, 32) == pytest.approx(thin / H100.hbm_rate)


def test_a_product_that_just_misses_a_tile_pays_for_the_whole_tile() -> None:
    whole, over = (matmul_seconds(H100, 128 * 132, width, 512) for width in (1024, 1025))
    assert over > 1.1 * whole
    assert over == matmul_seconds(H100, 128 * 132, 1152, 512)


def test_a_layer_has_the_products_of_its_parameters_and_tensor_parallelism_divides_them() -> None:
    model = smollm3().model
    assert sum(inputs * outputs for inputs, outputs in layer_matmuls(model, 1)) == 10_485_760 + 67_633_152
    halves = [inputs * outputs for inputs, outputs in layer_matmuls(model, 2)]
    assert 2 * sum(halves) == 10_485_760 + 67_633_152


def test_the_backward_of_a_product_is_two_products_and_the_accumulation() -> None:
    forward, backward = linear_seconds(H100, 8448, 2048, 2048)
    assert forward == matmul_seconds(H100, 8448, 2048, 2048)
    dx, dw = matmul_seconds(H100, 8448, 2048, 2048), matmul_seconds(H100, 2048, 2048, 8448)
    assert backward == pytest.approx(dx + dw + 8 * 2048**2 / H100.hbm_rate)


def test_attention_costs_what_its_products_cost() -> None:
    model = smollm3().model
    forward, backward = attention_seconds(H100, model, 2, 1000, 2048.0)
    assert forward == pytest.approx(4 * 16 * 128 * 2048 * 1000 / 2 / (0.35 * 989.4e12))
    assert backward == 2.5 * forward


def test_short_documents_spare_attention_and_nothing_else() -> None:
    assert mean_attended(4096) == 2048
    assert mean_attended(4096, 1000) == 500
    assert mean_attended(4096, 9000) == 2048
    whole, short = seconds(), seconds(document_tokens=1024)
    assert short.attention == pytest.approx(whole.attention / 4)
    assert short.total == pytest.approx(whole.total - 0.75 * whole.attention)


def test_elementwise_kernels_move_the_bytes_that_the_formula_counts() -> None:
    model = smollm3().model
    forward, backward = elementwise_seconds(H100, model, 1, False, 100)
    assert forward == pytest.approx(2 * 100 * (10 * 2048 + 2 * (2048 + 512) + 3 * 11008) / H100.hbm_rate)
    assert backward == 2 * forward
    assert elementwise_seconds(H100, model, 2, True, 100)[0] == pytest.approx(forward / 2)
    assert elementwise_seconds(H100, model, 2, False, 100)[0] > forward / 2


def test_full_recomputation_runs_the_layers_forward_once_more() -> None:
    none, full = seconds(), seconds(384, "parallel.recompute=full")
    assert full.attention == pytest.approx(none.attention * 4.5 / 3.5)
    assert full.tensor_parallel == pytest.approx(none.tensor_parallel * 10 / 6)  # four collectives of six again
    assert 1.2 < full.total / none.total < 1.34
    assert full.mfu < none.mfu  # repeated work is no work of the model


def test_selective_recomputation_runs_the_mlps_forward_once_more() -> None:
    none, selective = seconds(), seconds(384, "parallel.recompute=selective")
    model, tokens = smollm3().model, 3 * 4096
    up, down = (linear_seconds(H100, tokens, *shape)[0] for shape in layer_matmuls(model, 2)[2:])
    assert selective.matmuls == pytest.approx(none.matmuls + 36 * (up + down) / KERNEL_SHARE)
    assert selective.elementwise == pytest.approx(none.elementwise + 36 * swiglu_seconds(H100, model, 2, tokens) / KERNEL_SHARE)
    assert swiglu_seconds(H100, model, 2, tokens) == pytest.approx(2 * tokens * 3 * 11008 / 2 / H100.hbm_rate)
    assert selective.tensor_parallel == pytest.approx(none.tensor_parallel * 8 / 6)
    assert selective.attention == none.attention


# --- traffic -------------------------------------------------------------------------------------------------------------


def test_a_group_uses_nvlink_inside_a_node_and_its_share_of_the_adapters_beyond() -> None:
    assert group_bandwidth(H100, 8, 1) == pytest.approx(0.81 * 450e9)
    assert group_bandwidth(H100, 4, 2) == pytest.approx(0.81 * 450e9)
    assert group_bandwidth(H100, 16, 1) == pytest.approx(8 * 40e9)  # measured: 320 to 350 GB/s
    assert group_bandwidth(H100, 192, 2) == pytest.approx(4 * 40e9)
    assert group_bandwidth(H100, 2, 16) == pytest.approx(40e9)


def test_a_ring_moves_all_but_ones_own_share() -> None:
    assert ring_seconds(H100, 364.5e9, 4, 1) == pytest.approx(0.75)
    assert ring_seconds(H100, 1e9, 1, 1) == 0
    scatter, gather = data_parallel_seconds(H100, 10**9, 8, 1)
    assert scatter == pytest.approx(7 / 8 * 4e9 / 364.5e9)
    assert scatter == 2 * gather


def test_tensor_parallel_traffic_is_four_collectives_forward_and_two_exposed_backward() -> None:
    model = smollm3().model
    one = 0.5 * 2 * 1000 * 2048 / 364.5e9
    assert tensor_parallel_seconds(H100, model, 2, True, 1000) == pytest.approx((4 * one, 2 * one))
    assert tensor_parallel_seconds(H100, model, 2, False, 1000) == pytest.approx((4 * one, 0))
    assert tensor_parallel_seconds(H100, model, 1, False, 1000) == (0, 0)


def test_the_context_ring_hides_behind_attention_until_its_link_is_slow() -> None:
    model = smollm3().model
    forward, backward = context_parallel_seconds(H100, model, 2, 4, 1000)
    assert forward == pytest.approx(3 * 4 * 1000 * 512 / 2 / 364.5e9)
    assert backward == 2 * forward
    near = seconds(8, "parallel.context=2", "train.micro_batch_size=1", "train.global_batch_size=2")
    assert near.context_parallel == 0
    far = seconds(384, "parallel.context=64", "train.micro_batch_size=1", "train.global_batch_size=3")
    assert far.context_parallel > 0


def test_the_bubble_is_stages_less_one_over_micro_batches() -> None:
    assert pipeline_bubble(4, 12) == 0.25
    assert pipeline_bubble(4, 12, chunks=3) == pytest.approx(1 / 12)
    chunked = seconds(64, "parallel.pipeline=4", "parallel.virtual_pipeline=3", "train.micro_batch_size=1")
    result = seconds(64, "parallel.pipeline=4", "train.micro_batch_size=1")
    assert chunked.pipeline_bubble == pytest.approx(result.pipeline_bubble / 3, rel=0.05)  # transfers differ
    busy = result.total - result.pipeline_bubble - result.data_parallel - result.optimizer
    assert result.pipeline_bubble == pytest.approx(busy * 3 / 72)  # 8 copies, 72 windows each


def test_an_interleaved_pipeline_sends_more_and_hides_it_behind_the_next_chunk() -> None:
    assert pipeline_transfer_seconds(0.5, 1, True, (4.0, 8.0)) == 2 * 0.5
    assert pipeline_transfer_seconds(0.5, 3, False, (4.0, 8.0)) == 3 * 2 * 0.5
    assert pipeline_transfer_seconds(0.5, 3, True, (4.0, 8.0)) == 0
    assert pipeline_transfer_seconds(2.0, 3, True, (4.0, 8.0)) == 2  # three of 2 seconds forward, 4 of them hidden


def test_overlap_hides_the_data_parallel_traffic_until_there_is_too_little_to_compute() -> None:
    exposed = seconds(384, "parallel.overlap=false")
    assert seconds().data_parallel == 0
    assert exposed.data_parallel == pytest.approx(sum(data_parallel_seconds(H100, 1_537_624_064, 192, 2)))
    short = seconds(384, "train.micro_batch_size=1", "train.global_batch_size=192", "data.sequence_length=256")
    assert 0 < short.data_parallel < exposed.data_parallel


def test_the_optimizer_is_shared_by_the_copies() -> None:
    assert optimizer_seconds(H100, 10**9, 1) == pytest.approx(38e9 / H100.hbm_rate)
    assert optimizer_seconds(H100, 10**9, 10**9) == pytest.approx(4e9 / H100.hbm_rate, rel=1e-6)


def test_an_optimizer_that_no_one_shares_reduces_all_gradients_and_updates_all_weights() -> None:
    shared, whole = (seconds(384, "parallel.overlap=false", f"optim.optimizer={name}") for name in ("adamw", "ademamix"))
    scatter, gather = data_parallel_seconds(H100, 1_537_624_064, 192, 2)
    assert shared.data_parallel == pytest.approx(scatter + gather)
    assert whole.data_parallel == pytest.approx(2 * scatter)
    assert whole.optimizer == pytest.approx(optimizer_seconds(H100, 1_537_624_064, 1) / KERNEL_SHARE)


def test_faster_gpus_are_faster_everywhere() -> None:
    rates = [step_time(smollm3(), 384, GPUS[name]).tokens_per_second_per_gpu for name in ("a100", "h100", "h200", "b200")]
    assert rates == sorted(rates)


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_what_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu='h10' is not a kind of GPU .* did you mean 'h100'"):
        find_gpu("h10")
    with pytest.raises(ConfigError, match=r"train.precision=fp32: speeds are known for bf16 only; set train.precision=bf16"):
        seconds(384, "train.precision=fp32")
