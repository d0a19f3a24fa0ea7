"""The optimizer: AdamW against torch's, and which parameters decay."""

import jobs
import pytest
import torch
from ranks import RankError, Ranks


def test_adamw_steps_like_torch_adamw() -> None:
    from smol_train.optim import AdamW

    torch.manual_seed(0)
    shapes, settings = [(7, 5), (3,)], {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)]
    for _ in range(20):
        for mine, reference in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            reference.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)
    assert optimizers[0].param_groups[0]["step"] == 20, "the step count stands in the group, as in Transformer Engine's"


def test_adamw_refuses_coupled_weight_decay() -> None:
    from smol_train.optim import AdamW

    with pytest.raises(ValueError, match="decoupled"):
        AdamW([torch.nn.Parameter(torch.ones(1))], adam_w_mode=False)


def test_the_embedding_is_exempt_from_weight_decay_and_norms_are_not(ranks: Ranks, overrides: list[str]) -> None:
    for stage in ranks.run(jobs.decay_by_name, 2, overrides=[*overrides, "parallel.pipeline=2"]):
        assert "embedding.word_embeddings.weight" in stage, "both ends of the pipeline hold a copy"
        for name, decay in stage.items():
            assert decay == (0.0 if name == "embedding.word_embeddings.weight" else 0.1), name


def test_patterns_choose_layers_by_their_number_in_the_whole_model(ranks: Ranks, overrides: list[str]) -> None:
    settings = ["parallel.pipeline=2", "optim.no_weight_decay=['decoder.layers.3.*layer_norm_weight']"]
    stages = ranks.run(jobs.decay_by_name, 2, overrides=[*overrides, *settings])
    exempt = {name for stage in stages for name, decay in stage.items() if decay == 0.0}
    assert exempt == {
        "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.3.mlp.linear_fc1.layer_norm_weight",
    }


def test_a_pattern_that_matches_nothing_is_refused(ranks: Ranks, overrides: list[str]) -> None:
    with pytest.raises(RankError, match=r"optim.no_weight_decay: '\*.bias' matches no parameter"):
        ranks.run(jobs.decay_by_name, 1, overrides=[*overrides, "optim.no_weight_decay=['*.bias']"])


def test_the_gradient_norm_is_clipped(ranks: Ranks, overrides: list[str]) -> None:
    [free] = ranks.run(jobs.train, 1, overrides=[*overrides, "optim.clip_grad_norm=0"])
    [clipped] = ranks.run(jobs.train, 1, overrides=[*overrides, "optim.clip_grad_norm=1.0e-6", "optim.eps=1.0e-3"])
    assert clipped["grad_norm"][0] == free["grad_norm"][0], "the norm reported is the one before clipping"
    assert clipped["loss"][5] > free["loss"][5], "with gradients cut to 1e-6 against eps 1e-3 almost nothing is learned"
