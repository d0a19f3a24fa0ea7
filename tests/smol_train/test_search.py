"""The search over layouts: every answer is a run that plans, every refusal has its reason."""

import json
import re
from pathlib import Path

import pytest

import smol_config
from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.gpus import GPUS
from smol_train.memory import device_memory
from smol_train.plan import main, plan
from smol_train.search import Search, apply, render, search

ROOT = Path(__file__).resolve().parents[2]
SMOLLM3 = str(ROOT / "configs/smollm3/pretrain.yaml")
H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return smol_config.load(RunConfig, SMOLLM3, keep_unset=True)


@pytest.fixture(scope="module")
def found(config: RunConfig) -> Search:
    return search(config, 64, H100)


def test_every_ranked_layout_is_a_valid_run_that_plans_to_the_same_figures(config: RunConfig, found: Search) -> None:
    assert len(found.ranked) > 20
    for one in found.ranked:
        laid_out = apply(config, one.layout)
        assert laid_out.problems() == []
        result = plan(laid_out, gpus=64, gpu="h100")
        assert result.data_parallel == one.layout.data
        assert result.micro_batches_per_step == one.layout.micro_batches
        assert result.memory["bf16"].total == one.memory_bytes <= found.memory_bytes
        assert result.speed == one.speed


def test_the_fastest_stands_first_and_no_layout_stands_twice(found: Search) -> None:
    rates = [one.speed.tokens_per_second_per_gpu for one in found.ranked]
    assert rates == sorted(rates, reverse=True)
    layouts = [one.layout.model_dump_json() for one in (*found.ranked, *found.refused)]
    assert len(layouts) == len(set(layouts))
    assert {one.layout.micro_batch_size for one in (*found.ranked, *found.refused) if one.layout.context > 1} == {1}
    best = found.ranked[0].layout
    assert (best.tensor, best.pipeline, best.context) == (1, 1, 1)  # the model fits one GPU: nothing to gain by splitting


def test_smollm3s_own_layout_is_among_the_ranked(found: Search) -> None:
    own = [one for one in found.ranked if (one.layout.tensor, one.layout.data, one.layout.micro_batch_size) == (2, 32, 3)]
    assert len(own) == 1


def test_refused_layouts_name_the_setting_or_the_memory(found: Search) -> None:
    reasons = {one.reason for one in found.refused if one.cause == "does not divide"}
    assert any(reason.startswith("model.num_query_groups=4 is not divisible by parallel.tensor=8") for reason in reasons)
    assert any(reason.startswith("model.num_layers=36 is not divisible by parallel.pipeline=8") for reason in reasons)
    too_large = [one for one in found.refused if one.cause == "does not fit"]
    assert too_large
    assert all(one.memory_bytes is not None and one.memory_bytes > found.memory_bytes for one in too_large)


def test_a_batch_or_a_window_that_does_not_divide_is_refused() -> None:
    odd = smol_config.load(RunConfig, SMOLLM3, ["train.global_batch_size=6"], keep_unset=True)
    reasons = {one.reason for one in search(odd, 8, H100).refused}
    assert "train.global_batch_size=6 cannot be shared by 8 copies of the model" in reasons
    short = smol_config.load(RunConfig, SMOLLM3, ["data.sequence_length=4"], keep_unset=True)
    reasons = {one.reason for one in search(short, 8, H100).refused}
    assert any(reason.startswith("data.sequence_length=4 is not") and "context=4" in reason for reason in reasons)


def test_context_parallelism_is_refused_where_the_backend_has_none() -> None:
    torch = smol_config.load(RunConfig, SMOLLM3, ["train.backend=torch"], keep_unset=True)
    assert {one.layout.context for one in search(torch, 8, H100).ranked} == {1}


def test_less_memory_leaves_fewer_layouts_and_splits_the_model(config: RunConfig, found: Search) -> None:
    tight = search(config, 64, H100, memory_gib=12.0)
    assert 0 < len(tight.ranked) < len(found.ranked)
    assert all(one.layout.tensor * one.layout.pipeline > 1 for one in tight.ranked)


def test_activations_are_recomputed_only_where_they_must_and_as_little_as_does(config: RunConfig, found: Search) -> None:
    assert {one.layout.recompute for one in found.ranked} == {"none", "selective", "full"}
    for one in (*found.ranked, *found.refused):
        less = {"none": [], "selective": ["none"], "full": ["none", "selective"]}[one.layout.recompute]
        for recompute in less:
            lighter = apply(config, one.layout.model_copy(update={"recompute": recompute}))
            assert device_memory(lighter, "bf16", one.layout.data).total > found.memory_bytes
        assert one.layout.recompute == "full" or one.memory_bytes is None or one.memory_bytes <= found.memory_bytes


def test_interleaved_pipelines_are_tried_where_micro_batches_come_in_groups(found: Search) -> None:
    chunked = [one.layout for one in found.ranked if one.layout.virtual_pipeline > 1]
    assert {layout.virtual_pipeline for layout in chunked} == {2, 3}  # 36 layers on 2, 3, 4, 6, 12 stages
    assert all(layout.micro_batches % layout.pipeline == 0 for layout in chunked)
    plain = {one.layout.model_copy(update={"virtual_pipeline": 1, "recompute": "none"}).name() for one in found.ranked}
    assert all(layout.model_copy(update={"virtual_pipeline": 1, "recompute": "none"}).name() in plain for layout in chunked)


def test_the_table_shows_each_layout_once_and_counts_the_refused(found: Search) -> None:
    lines = render(found).splitlines()
    assert "not measured" in lines[0] and "71.1 GiB" in lines[0]
    assert lines[3].split()[:8] == ["1", "1", "1", "1", "64", "3", "3", "none"]
    rows = [tuple(line.split()[column] for column in (0, 1, 3)) for line in lines[3:13]]
    assert len(rows) == len(set(rows)) == 10
    divide, fit = (sum(one.cause == cause for one in found.refused) for cause in ("does not divide", "does not fit"))
    assert f"{divide} do not divide:" in lines
    assert f"{fit} do not fit:" in lines


def test_impossible_questions_are_refused(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"gpus=0 and memory=79.0: give at least one GPU and more than 0 GiB"):
        search(config, 0, H100)
    with pytest.raises(ConfigError, match=r"gpus=8 and memory=-1: give"):
        search(config, 8, H100, memory_gib=-1)


# --- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", SMOLLM3, "--search", "--gpus", "16", "--memory", "60", "--gpu", "h200"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("16 x h200, 54.0 GiB")
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("measured") == []
    result = Search.model_validate(printed)
    assert (result.gpus, result.gpu) == (16, "h200")


def test_the_command_without_an_answer_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "--search", "--gpus", "1", "--memory", "8"]) == 2
    assert "no layout divides and fits; give more GPUs or memory" in capsys.readouterr().out
    assert main(["--config", SMOLLM3, "--search"]) == 2
    assert "--search has no --gpus; say on how many devices" in capsys.readouterr().err


def test_a_named_gpu_replaces_the_assumed_utilisation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SMOLLM3, "--gpus", "384", "--gpu", "h100"]) == 0
    out = capsys.readouterr().out
    assert "predicted" in out and "assumed" not in out and "  tensor parallel" in out
    assert main(["--config", SMOLLM3, "--gpus", "384", "--gpu", "h100", "--summary"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("384 x h100: ") and "11.14 T tokens in 24." in out
    assert "waits for its upload" not in out
    assert (
        main(["--config", SMOLLM3, "--gpus", "384", "--gpu", "h100", "--summary", "--", "checkpoint.upload=s3://b/runs"]) == 0
    )
    disk = r"disk: \d+ checkpoints of (\S+ GiB) = .*, and \1 for each that waits for its upload; tokens"
    assert re.search(disk, capsys.readouterr().out)
    assert main(["--config", SMOLLM3, "--summary"]) == 2
    assert "--summary has no --gpu" in capsys.readouterr().err
    assert main(["--config", SMOLLM3, "--memory", "60"]) == 2
    assert "--memory and --measure only mean something with --search" in capsys.readouterr().err
