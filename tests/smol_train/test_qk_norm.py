"""Norms on queries and keys added to a run that was trained without them: a remedy for losses that spike again and again."""

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from ranks import RankError, Ranks
from tiny_runs import QUICKSTART, tiny_overrides

from smol_config import load
from smol_train.config import RunConfig


@pytest.fixture(scope="module")
def saved(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """iter_0000006 of an fp32 run without the norms."""
    run = tmp_path_factory.mktemp("saved")
    ranks.run(jobs.train, 1, overrides=tiny_overrides(corpus, run), save=True)
    return run / "iter_0000006"


def with_norms(saved: Path, optimizer: bool = False) -> list[str]:
    start = f"start_from={{checkpoint: {saved}, optimizer: {str(optimizer).lower()}, data_position: true}}"
    return ["model.qk_norm=true", start]


def built(overrides: list[str]) -> dict[str, Any]:
    """What a run begins with: digests of the weights, the norms themselves, the spike monitor's window."""
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks)
        named = {name: weight for chunk in trainer.chunks for name, weight in chunk.named_parameters()}
        norms = {name: weight for name, weight in named.items() if "q_layernorm" in name or "k_layernorm" in name}
        trainer.loader.close()
        return {
            "step": trainer.state.step,
            "weights": jobs.weight_digests(trainer),
            "norms": {name: bool(torch.equal(weight, torch.ones_like(weight))) for name, weight in norms.items()},
            "monitor": trainer.state.monitor,
        }


def test_the_norms_begin_at_one_and_everything_else_is_the_checkpoints(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    [before] = ranks.run(built, 1, overrides=[*overrides, f"start_from.checkpoint={saved}"])
    [after] = ranks.run(built, 1, overrides=[*overrides, *with_norms(saved)])
    assert before["step"] == after["step"] == 6
    assert len(after["norms"]) == 2 * 4 and all(after["norms"].values()) and not before["norms"]
    kept = {name: after["weights"][name] for name in before["weights"]}
    assert kept == before["weights"] and len(after["weights"]) == len(kept) + 2 * 4
    assert before["monitor"] and not after["monitor"], "the usual loss of the model without norms is not this one's"


def test_it_trains_alike_on_one_and_on_two_tensor_parallel_ranks_resumes_and_cannot_be_taken_back(
    ranks: Ranks, overrides: list[str], saved: Path, tmp_path: Path
) -> None:
    settings = [*overrides, *with_norms(saved)]
    [alone] = ranks.run(jobs.train, 1, overrides=[*settings, "checkpoint.every_steps=8", "checkpoint.keep_last=9"], save=True)
    assert alone["start"] == 6 and alone["code"] == 0
    assert all(0 < loss < 10 for loss in alone["loss"])
    split = [f"train.output_dir={tmp_path / 'split'}", "parallel.tensor=2"]
    for layout in ([], ["parallel.sequence=true"]):
        for other in ranks.run(jobs.train, 2, overrides=[*settings, *split, *layout]):
            assert other["loss"] == pytest.approx(alone["loss"], abs=2e-6)
            assert other["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
    goes_on = f"start_from={{checkpoint: {tmp_path / 'run' / 'iter_0000008'}, optimizer: true, data_position: true}}"
    [resumed] = ranks.run(jobs.train, 1, overrides=[*settings, f"train.output_dir={tmp_path / 'on'}", goes_on])
    assert resumed["loss"] == alone["loss"][2:], "with the norms in the checkpoint nothing is added any more"
    with pytest.raises(RankError, match=r"another architecture \(model\.qk_norm: checkpoint True, config False\)"):
        ranks.run(jobs.train, 1, overrides=[*overrides, f"train.output_dir={tmp_path / 'back'}", goes_on])


def test_with_the_optimizer_it_is_refused_with_the_remedy(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    with pytest.raises(RankError, match=r"nothing for the norms that qk_norm=true adds; start a new run .* optimizer: false"):
        ranks.run(jobs.train, 1, overrides=[*overrides, *with_norms(saved, optimizer=True)])
