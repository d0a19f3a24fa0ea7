"""Checkpoints: whole or not there, kept and removed by rule, refused when they do not fit, loaded on other layouts."""

import json
import shutil
from pathlib import Path

import jobs
import pytest
import yaml
from ranks import RankError, Ranks
from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.checkpoint_folder import MARKER
from smol_train.checkpoint_integrity import find
from smol_train.config import RunConfig
from smol_train.data_places import for_all_nodes, for_each_rank


@pytest.fixture(scope="module")
def saved(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fp32 run: iter_0000006 (end of the first stage) and iter_0000010."""
    from tiny_runs import tiny_overrides

    run = tmp_path_factory.mktemp("saved")
    ranks.run(jobs.train, 1, overrides=tiny_overrides(corpus, run), save=True)
    return run


def continued(saved: Path, optimizer: bool = True) -> list[str]:
    """Settings of another run that goes on from the end of the first stage."""
    return [f"start_from.checkpoint={saved / 'iter_0000006'}", f"start_from.optimizer={str(optimizer).lower()}"]


def test_a_checkpoint_says_what_it_is(saved: Path) -> None:
    folder = find(saved)
    state = json.loads((folder / "state.json").read_text())
    assert folder.name == "iter_0000010"
    assert (state["step"], state["samples"], state["tokens"]) == (10, 80, 80 * 64)
    assert state["optimizer"] == "fully_reshardable"
    assert state["layout"] == {"tensor": 1, "pipeline": 1, "virtual_pipeline": 1, "context": 1, "data": 1}
    assert (state["backend"], state["reason"]) == ("torch", "end of stage decay")
    assert set(state["versions"]) == {"torch", "megatron-core"}
    assert set(state["data"]["manifests"]) == {"code", "docs"}
    assert yaml.safe_load((folder / "run.yaml").read_text())["model"]["hidden_size"] == 64


def datasets(written: str) -> dict[str, str]:
    return dict(yaml.safe_load(written)["data"]["datasets"])


def test_a_checkpoint_names_the_data_that_all_nodes_see(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(RunConfig, QUICKSTART, [*overrides, "data.datasets.code=/disk/n1/code", "data.datasets.docs=/elsewhere/docs"])
    monkeypatch.setenv("DATA_ROOT", "/disk/n1")
    assert datasets(for_all_nodes(config))["code"] == "/disk/n1/code"
    assert datasets(for_each_rank(config)) == {"code": "${DATA_ROOT}/code", "docs": "/elsewhere/docs"}
    monkeypatch.setenv("SMOL_SHARED_DATA", "/shared/data")
    assert datasets(for_all_nodes(config)) == {"code": "/shared/data/code", "docs": "/elsewhere/docs"}
    monkeypatch.delenv("DATA_ROOT")
    assert datasets(for_all_nodes(config)) == datasets(for_each_rank(config)) == config.data.datasets


INTERLEAVED = ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]


@pytest.mark.parametrize("layout", [["parallel.tensor=2"], INTERLEAVED, []], ids=["TP2", "PP2, interleaved", "DP2"])
def test_another_layout_goes_on_from_a_stage_end_with_the_optimizer(
    layout: list[str], ranks: Ranks, overrides: list[str], saved: Path
) -> None:
    [same] = ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved)])
    assert same["start"] == 6
    for other in ranks.run(jobs.train, 2, overrides=[*overrides, *continued(saved), *layout]):
        assert other["loss"] == pytest.approx(same["loss"], abs=2e-6)
    [fresh] = ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved, optimizer=False)])
    assert abs(fresh["loss"][-1] - same["loss"][-1]) > 1e-3, "without the optimizer's state the path must differ"


def test_one_process_goes_on_from_an_interleaved_pipeline_with_the_optimizer(
    ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    whole, _ = ranks.run(jobs.train, 2, overrides=[*overrides, *INTERLEAVED, "checkpoint.keep_last=9"], save=True)
    for layout in ([], ["parallel.pipeline=2"]):
        settings = [*continued(tmp_path / "run"), f"train.output_dir={tmp_path / 'next'}", *layout]
        for other in ranks.run(jobs.train, 1 + len(layout), overrides=[*overrides, *settings]):
            assert other["start"] == 6
            assert other["loss"] == pytest.approx(whole["loss"][6:], abs=2e-6)


def test_a_periodic_save_of_an_interleaved_pipeline_resumes_bit_for_bit_and_as_such_only(
    ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    settings = [*overrides, "train.precision=bf16", "parallel.pipeline=2", "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    whole, _ = ranks.run(jobs.train, 2, overrides=[*settings, "parallel.virtual_pipeline=2"], save=True)
    start = [f"start_from.checkpoint={tmp_path / 'run' / 'iter_0000004'}", f"train.output_dir={tmp_path / 'next'}"]
    resumed, _ = ranks.run(jobs.train, 2, overrides=[*settings, *start, "parallel.virtual_pipeline=2"])
    assert (resumed["start"], resumed["loss"]) == (4, whole["loss"][4:])
    assert resumed["weights"] == whole["weights"]
    with pytest.raises(RankError, match=r"parallel.virtual_pipeline=2 on .* does not load on .* virtual_pipeline=1"):
        ranks.run(jobs.train, 2, overrides=[*settings, *start])


def test_another_precision_goes_on_with_the_optimizer(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    [fp32] = ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved)])
    [bf16] = ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved), "train.precision=bf16"])
    assert bf16["start"] == 6
    assert bf16["loss"] == pytest.approx(fp32["loss"], abs=2e-2), "bf16 has 8 bits of mantissa: losses near 6 agree to 0.02"
    assert bf16["loss"] != fp32["loss"]


def test_weights_alone_begin_a_new_data_order(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    settings = [*continued(saved, optimizer=False), "start_from.data_position=false"]
    [fresh] = ranks.run(jobs.train, 1, overrides=overrides)
    [later] = ranks.run(jobs.train, 1, overrides=[*overrides, *settings])
    assert later["start"] == 0
    assert later["loss"][0] < fresh["loss"][0] - 0.3, "trained weights on the first batch do better than new ones"


def test_a_run_s_own_checkpoint_wins_over_start_from(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    ranks.run(jobs.train, 1, overrides=overrides, save=True)
    [again] = ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved)], save=True)
    assert again["start"] == 10


def test_a_periodic_bf16_save_loads_on_its_layout_only(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    bf16 = [*overrides, "train.precision=bf16", "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    ranks.run(jobs.train, 1, overrides=bf16, save=True)
    start = [f"start_from.checkpoint={tmp_path / 'run' / 'iter_0000004'}", f"train.output_dir={tmp_path / 'next'}"]
    [next_run] = ranks.run(jobs.train, 1, overrides=[*bf16, *start])
    assert next_run["start"] == 4
    with pytest.raises(RankError, match=r"periodic save of parallel.tensor=1.*does not load on tensor=2"):
        ranks.run(jobs.train, 2, overrides=[*bf16, *start, "parallel.tensor=2"])
    state = tmp_path / "run" / "iter_0000004" / "state.json"
    state.write_text(state.read_text().replace('"backend": "torch"', '"backend": "te"'))
    with pytest.raises(RankError, match=r"on the te backend, which does not load on .* on torch"):
        ranks.run(jobs.train, 1, overrides=[*bf16, *start])


def test_saving_in_the_background_stores_the_state_of_its_step(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    settings = ["checkpoint.every_steps=2", "checkpoint.keep_last=9", "parallel.overlap=true"]
    ranks.run(jobs.train, 2, overrides=[*overrides, *settings], save=True)
    background = [*settings, "checkpoint.async_save=true", f"train.output_dir={tmp_path / 'background'}"]
    ranks.run(jobs.train, 2, overrides=[*overrides, *background], save=True)
    for step in (2, 4, 6, 8, 10):
        name = f"iter_{step:07d}"
        [foreground] = ranks.run(jobs.stored_weight_digests, 1, folder=tmp_path / "run" / name)
        [stored] = ranks.run(jobs.stored_weight_digests, 1, folder=tmp_path / "background" / name)
        assert stored == foreground, name


def test_another_architecture_is_refused_naming_both_values(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    with pytest.raises(RankError, match=r"model\.ffn_hidden_size: checkpoint 176, config 160"):
        ranks.run(jobs.train, 1, overrides=[*overrides, *continued(saved), "model.ffn_hidden_size=160"])


def test_weights_only_checkpoints_have_no_optimizer_to_give(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    ranks.run(jobs.save_initial_weights, 1, overrides=overrides, folder=tmp_path / "weights")
    with pytest.raises(RankError, match=r"holds weights only; set start_from\.optimizer=false"):
        ranks.run(jobs.train, 1, overrides=[*overrides, f"start_from.checkpoint={tmp_path / 'weights'}"])


def test_a_window_longer_than_the_model_allows_needs_a_word(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    """As after from-hf, which stores what the Hugging Face configuration allows."""
    folder = tmp_path / "weights"
    ranks.run(jobs.save_initial_weights, 1, overrides=[*overrides, "model.max_sequence_length=64"], folder=folder)
    start = f"start_from={{checkpoint: {folder}, optimizer: false, data_position: false}}"
    longer = [*overrides, start, "data.sequence_length=128"]
    with pytest.raises(RankError, match=r"model for up to 64 tokens, but data\.sequence_length=128; shorten it, or set"):
        ranks.run(jobs.train, 1, overrides=longer)
    [said] = ranks.run(jobs.train, 1, overrides=[*longer, "model.max_sequence_length=128"])
    assert len(said["loss"]) == 10


def test_a_checkpoint_that_lost_its_marker_is_refused(ranks: Ranks, overrides: list[str], saved: Path, tmp_path: Path) -> None:
    torn = tmp_path / "iter_0000006"
    shutil.copytree(saved / "iter_0000006", torn)
    (torn / MARKER).unlink()
    with pytest.raises(RankError, match="has no COMPLETE marker"):
        ranks.run(jobs.train, 1, overrides=[*overrides, f"start_from.checkpoint={torn}"])


def test_other_data_under_a_resumed_run_is_refused(ranks: Ranks, overrides: list[str], saved: Path) -> None:
    swapped = [setting.replace("tokens/code", "tokens/docs") for setting in overrides if "datasets.code" in setting]
    with pytest.raises(RankError, match="dataset 'code' has manifest digest"):
        ranks.run(jobs.train, 1, overrides=[*overrides, *swapped, *continued(saved)])
