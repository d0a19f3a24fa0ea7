"""Muon: torch's own, the paper's rule, whole matrices under tensor parallelism, resume, checkpoints on other layouts.

Tolerance of losses between layouts, fp32: Newton-Schulz raises small singular values of a gradient up to 485 times (3.4445
to the 5th), and with them the rounding by which layouts differ (1e-7). Seen over four steps: 2.4e-7, as with AdamW.
"""

import math
from pathlib import Path

import jobs
import optimizer_jobs
import pytest
import torch
from ranks import RankError, Ranks
from tiny_runs import tiny_overrides

MUON = ["optim.optimizer=muon"]
LOSS_TOLERANCE = 1e-5


def build(parameter: torch.nn.Parameter, rows: tuple[int, ...], precision: torch.dtype, **settings: float):
    from smol_train.muon import Layout, Muon
    from smol_train.sections.optim import MuonConfig

    group = {"params": [parameter], "is_decoupled_lr": True}
    optimizer = Muon([group], MuonConfig(**settings), precision, lr=1e-2, weight_decay=0.1)
    optimizer.layouts = {parameter: Layout(rows)}
    return optimizer


@pytest.mark.parametrize("shape", [(32, 12), (12, 32), (16, 16)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_steps_like_torch_s_muon(shape: tuple[int, int], nesterov: bool) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    settings = {"momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    optimizers = [
        build(ours, (shape[0],), torch.bfloat16, **settings),
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", **settings),
    ]
    for _ in range(10):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # One spacing of bf16 (2^-8) of an update's elements, 1e-2 * 0.2 * sqrt(32) * O(0.3), ten times.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_newton_schulz_brings_singular_values_near_one_and_keeps_their_vectors() -> None:
    from smol_train.muon import orthogonalized

    torch.manual_seed(0)
    matrix = torch.randn(24, 64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalized(matrix, steps=5, precision=torch.float32)
    inside = u.T @ result @ v.T
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25, "Jordan et al. 2024: about 0.7 to 1.2"
    torch.testing.assert_close(inside, inside.diagonal().diag(), rtol=0, atol=1e-4)


def test_a_fused_weight_is_updated_as_the_matrices_that_it_is_made_of() -> None:
    """Query, key and value of two groups, block by block, against a plain step of each matrix: the paper's rule."""
    from smol_train.muon import orthogonalized

    torch.manual_seed(0)
    rows, columns = (8, 4, 4), 20
    parameter = torch.nn.Parameter(torch.randn(2 * sum(rows), columns))
    before, gradient = parameter.detach().clone(), torch.randn(2 * sum(rows), columns)
    optimizer = build(parameter, rows, torch.float32, momentum=0.95)
    parameter.grad = gradient.clone()
    optimizer.step()

    starts = {"query": (0, 8), "key": (8, 12), "value": (12, 16)}
    for first, end in starts.values():
        own = torch.cat([torch.arange(first, end), torch.arange(16 + first, 16 + end)])
        momentum = 0.05 * gradient[own]
        update = orthogonalized(0.05 * gradient[own] + 0.95 * momentum, 5, torch.float32)
        wanted = before[own] - 1e-2 * (0.2 * math.sqrt(max(update.shape)) * update + 0.1 * before[own])
        torch.testing.assert_close(parameter.detach()[own], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_tensor_parallel_ranks_make_the_update_of_whole_matrices(
    precision: str, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    """Same weights and same gradients (made from the whole tensors): TP 1 and TP 2 give the same weights, bit for bit."""
    settings = [*overrides, *MUON, f"train.precision={precision}"]
    [whole] = ranks.run(optimizer_jobs.steps_on_given_gradients, 1, overrides=settings, folder=tmp_path)
    for name in whole["before"]:
        assert not torch.equal(whole["before"][name], whole["after"][name]), name
    split = ranks.run(optimizer_jobs.steps_on_given_gradients, 2, overrides=[*settings, "parallel.tensor=2"], folder=tmp_path)
    for rank, part in enumerate(split):
        for name, dim in part["split_dims"].items():
            wanted = optimizer_jobs.part_of(name, whole["after"][name], dim, rank, 2)
            assert torch.equal(part["after"][name], wanted), (name, rank)


def test_newton_schulz_on_each_rank_s_part_alone_would_show(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    """The fault that the test above guards against, put in on purpose."""
    settings = [*overrides, *MUON]
    [whole] = ranks.run(optimizer_jobs.steps_on_given_gradients, 1, overrides=settings, folder=tmp_path)
    [part, _] = ranks.run(
        optimizer_jobs.steps_on_given_gradients, 2, overrides=[*settings, "parallel.tensor=2"], folder=tmp_path, gather=False
    )
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    wanted = optimizer_jobs.part_of(name, whole["after"][name], part["split_dims"][name], 0, 2)
    assert (part["after"][name] - wanted).abs().max() > 1e-4


def test_matrices_go_to_muon_and_the_rest_to_adamw(ranks: Ranks, overrides: list[str]) -> None:
    [states] = ranks.run(optimizer_jobs.states_by_name, 1, overrides=[*overrides, *MUON])
    for name, state in states.items():
        matrix = name.split(".")[-2].startswith("linear_") and name.endswith(".weight")
        assert state == (["momentum"] if matrix else ["exp_avg", "exp_avg_sq"]), name
    narrow = ["optim.muon.parameters=['*linear_fc?.weight']", "optim.muon.momentum=0.9"]
    [states] = ranks.run(optimizer_jobs.states_by_name, 1, overrides=[*overrides, *MUON, *narrow])
    assert {name.split(".")[-2] for name, state in states.items() if state == ["momentum"]} == {"linear_fc1", "linear_fc2"}


def test_fused_weights_are_taken_apart_as_hugging_face_names_them(ranks: Ranks, overrides: list[str]) -> None:
    """Hidden 64, 4 query heads and 2 key-value heads of 16, ffn 176: sizes on one of two tensor-parallel ranks."""
    heads = ["model.num_attention_heads=4", "model.num_query_groups=2", "model.head_dim=16", "parallel.tensor=2"]
    for rows in ranks.run(optimizer_jobs.matrix_rows_by_name, 2, overrides=[*overrides, *MUON, *heads]):
        layer = "decoder.layers.1"
        assert rows[f"{layer}.self_attention.linear_qkv.weight"] == (32, 16, 16), "two query heads, a key and a value a group"
        assert rows[f"{layer}.mlp.linear_fc1.weight"] == (88, 88), "gate and up"
        assert rows[f"{layer}.self_attention.linear_proj.weight"] == rows[f"{layer}.mlp.linear_fc2.weight"] == (64,)


def test_patterns_that_match_nothing_or_no_matrix_are_refused(ranks: Ranks, overrides: list[str]) -> None:
    with pytest.raises(RankError, match=r"optim.muon.parameters: '\*.experts' matches no parameter"):
        ranks.run(optimizer_jobs.states_by_name, 1, overrides=[*overrides, *MUON, "optim.muon.parameters=['*.experts']"])
    pipeline = [*overrides, *MUON, "parallel.pipeline=2", "optim.muon.parameters=['*final_layernorm.weight']"]
    with pytest.raises(RankError, match=r"match decoder.final_layernorm.weight of shape \[64\], which is no matrix") as error:
        ranks.run(optimizer_jobs.states_by_name, 2, overrides=pipeline)
    assert "rank 0" in str(error.value) and "rank 1" in str(error.value), "no rank goes on alone"


@pytest.fixture(scope="module")
def saved(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fp32 run on one rank: iter_0000006 (end of the first stage) and iter_0000010."""
    run = tmp_path_factory.mktemp("muon")
    ranks.run(jobs.train, 1, overrides=[*tiny_overrides(corpus, run), *MUON], save=True)
    return run


def test_it_learns_as_adamw_does(ranks: Ranks, overrides: list[str]) -> None:
    longer = [*overrides, "data.stages.0.steps=26", "optim.learning_rate=2.0e-3"]
    [adamw] = ranks.run(jobs.train, 1, overrides=longer)
    [ours] = ranks.run(jobs.train, 1, overrides=[*longer, *MUON])
    assert ours["loss"][-1] < ours["loss"][0] - 0.8 * (adamw["loss"][0] - adamw["loss"][-1])
    assert ours["loss"] != adamw["loss"]


@pytest.mark.parametrize(("precision", "layout"), [("bf16", []), ("bf16", ["parallel.tensor=2"]), ("fp32", [])])
def test_a_resumed_run_is_the_same_bit_for_bit(
    precision: str, layout: list[str], ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    settings = [*overrides, *MUON, *layout, f"train.precision={precision}", "parallel.overlap=true"]
    settings += ["checkpoint.every_steps=4", "checkpoint.keep_last=9", "checkpoint.async_save=true"]
    whole = ranks.run(jobs.train, 2, overrides=settings, save=True)
    for step in (4, 6):  # a periodic save and one at a stage's end
        start = f"start_from.checkpoint={tmp_path / 'run' / f'iter_{step:07d}'}"
        again = ranks.run(jobs.train, 2, overrides=[*settings, start, "train.output_dir=none"])
        for first, resumed in zip(whole, again, strict=True):
            assert resumed["start"] == step
            assert resumed["loss"] == first["loss"][step:]
            assert resumed["weights"] == first["weights"]


@pytest.mark.parametrize("layout", [["parallel.tensor=2"], ["parallel.pipeline=2"], []], ids=["TP2", "PP2", "DP2"])
def test_another_layout_goes_on_with_the_optimizer(layout: list[str], ranks: Ranks, overrides: list[str], saved: Path) -> None:
    start = [*overrides, *MUON, f"start_from.checkpoint={saved / 'iter_0000006'}"]
    [same] = ranks.run(jobs.train, 1, overrides=start)
    for other in ranks.run(jobs.train, 2, overrides=[*start, *layout]):
        assert other["loss"] == pytest.approx(same["loss"], abs=LOSS_TOLERANCE)
    [fresh] = ranks.run(jobs.train, 1, overrides=[*start, "start_from.optimizer=false"])
    assert abs(fresh["loss"][-1] - same["loss"][-1]) > 1e-3, "without the optimizer's state the path must differ"


@pytest.mark.parametrize("optimizer", ["muon", "ademamix"])
def test_states_and_master_weights_of_bf16_runs_load_bit_for_bit_on_another_layout(
    optimizer: str, ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    settings = [*overrides, f"optim.optimizer={optimizer}", "train.precision=bf16"]
    ranks.run(jobs.train, 4, overrides=[*settings, "parallel.tensor=2"], save=True)  # TP2 x DP2
    folder = tmp_path / "run" / "iter_0000010"
    [whole] = ranks.run(optimizer_jobs.loaded_states, 1, overrides=settings, folder=folder)
    layout = ["parallel.tensor=2", "parallel.pipeline=2"]
    seen = set()
    for part in ranks.run(optimizer_jobs.loaded_states, 4, overrides=[*settings, *layout], folder=folder):
        for name, states in part["states"].items():
            assert set(states) == set(whole["states"][name])
            for state, tensor in states.items():
                wanted = optimizer_jobs.part_of(name, whole["states"][name][state], part["split_dims"][name], part["rank"], 2)
                assert torch.equal(tensor, wanted) and tensor.any(), (name, state)
                seen.add(name)
    assert seen == set(whole["states"])


def test_another_optimizer_is_refused(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    with pytest.raises(RankError, match=r"holds the state of optim.optimizer=muon, config ademamix"):
        start = [f"start_from.checkpoint={saved / 'iter_0000006'}", "optim.optimizer=ademamix"]
        ranks.run(jobs.train, 1, overrides=[*overrides, *start])
