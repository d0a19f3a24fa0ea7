"""What a recipe refuses, each sentence once; exit code 93, as everything that trains has it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipe_kit import run, write_config

import smol_lock
from post_training.recipes import ranks
from post_training.recipes.callbacks import Soundness
from post_training.recipes.checkpoints import Pusher
from post_training.recipes.config import RECIPES, RecipeConfig
from smol_config import ConfigError, UserError, load

TEXT = {"data": {"sources": [{"name": "a", "path": "a", "kind": "text"}]}}
HELD = {"evaluation": {"every_steps": 2}}


@pytest.mark.parametrize(
    ("recipe", "changes", "sentence"),
    [
        ("sft", {"train": {"epochs": 1.0}}, r"train.epochs=1.0 and steps=2: set one of them"),
        ("sft", {"train": {"steps": None}}, r"train.epochs=None and steps=None: set one of them"),
        ("sft", {"train": {"micro_batch_size": 3}}, r"train.global_batch_size=2 is not a multiple of micro_batch_size=3"),
        ("sft", {"optim": {"betas": [0.9, 1.0]}}, r"optim.betas=\[0.9, 1.0\] must be at least 0 and below 1"),
        ("sft", {"checkpoint": {"every_steps": 1.5}}, r"checkpoint.every_steps=1.5 is neither a whole number nor a share"),
        ("sft", HELD, r"evaluation.every_steps=2, but data.held_out is empty; name a set or leave it out"),
        (
            "sft",
            {"data": {"sources": [{"name": "a", "path": "a", "kind": "prompts"}]}},
            r"data.sources: kind=prompts is not for this recipe, which trains on chat and text",
        ),
        ("mid", {"data": {"loss_on": "assistant"}}, r"data.loss_on=assistant: mid-training is on all tokens; set all, or use"),
        ("preference", TEXT, r"data.sources: kind=text is not for this recipe, which trains on kind: preference"),
        (
            "preference",
            {"preference": {"loss": "kto"}},
            r"train.micro_batch_size=1 with preference.loss=kto: .*; set 2 or more",
        ),
        ("sft", {"train": {"presicion": "fp32"}}, r"train.presicion: unknown key; did you mean 'precision'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    recipe: str, changes: dict[str, Any], sentence: str, tmp_path: Path, chat_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(RECIPES[recipe], write_config(tmp_path, recipe, chat_folder, changes))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.sources.0.path=/nowhere"], "dataset sums: path=/nowhere is not there, and no namespace/name of the Hub either"),
        (["train.global_batch_size=500"], "the data has 1. rows and train.global_batch_size=500, so that an epoch has no step"),
        (["train.attention=flash_attention_2"], "the trainer refuses it (FlashAttention2 has been toggled on"),
        (["lora.targets=[nothing]"], "the trainer refuses it (Target modules {'nothing'} not found"),
    ],
)
def test_what_cannot_be_trained_ends_with_93(
    overrides: list[str], sentence: str, tmp_path: Path, chat_folder: Path, capsys: Any
) -> None:
    assert run("sft", write_config(tmp_path, "sft", chat_folder), *overrides) == 93
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    start, _, end = sentence.partition("1. rows")
    assert start in told and end in told
    assert not list((tmp_path / "run").glob("iter_*"))


def test_a_folder_in_which_another_run_works_is_left_alone(tmp_path: Path, chat_folder: Path, capsys: Any) -> None:
    config = write_config(tmp_path, "sft", chat_folder)
    file, _ = smol_lock.take(tmp_path / "run", patience_seconds=0)
    assert file and run("sft", config) == 93
    assert f"train.output_dir={tmp_path / 'run'} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    smol_lock.give_back(tmp_path / "run", file)
    assert run("sft", config) == 0, "and when it is free, training begins"


def test_other_ranks_name_themselves(tmp_path: Path, chat_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert run("sft", write_config(tmp_path, "sft", chat_folder, HELD)) == 93
    assert capsys.readouterr().err.startswith("error on rank 3: ")


# --- processes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, chat_folder: Path) -> RecipeConfig:
    return load(RECIPES["sft"], write_config(tmp_path, "sft", chat_folder, {"train": {"activation_checkpointing": True}}))


def with_file(config: RecipeConfig, name: str) -> RecipeConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"accelerate": name})})


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(config: RecipeConfig) -> None:
    with pytest.raises(
        UserError, match=r"train.global_batch_size=2 is not a multiple of train.micro_batch_size=1 x 3 processes"
    ):
        ranks.accumulation(config, 3)
    assert ranks.accumulation(config, 2) == 1


def test_sruns_tasks_become_ranks_and_a_lone_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    environment = dict(ranks.os.environ)
    monkeypatch.setattr(ranks.os, "environ", environment)
    ranks.adopt_slurm()
    assert "RANK" not in environment
    environment["MASTER_ADDR"] = "10.0.0.1"
    ranks.adopt_slurm()
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("5", "8", "1")


def test_accelerates_files_become_the_trainers_settings(config: RecipeConfig, tmp_path: Path) -> None:
    assert ranks.sharding(config) == ranks.sharding(with_file(config, "ddp")) == {}
    fsdp = ranks.sharding(with_file(config, "fsdp2"))
    assert fsdp["fsdp"] and fsdp["fsdp_config"]["fsdp_activation_checkpointing"] and not fsdp["activation_checkpointing"]
    zero = Path(ranks.sharding(with_file(config, "zero3"))["deepspeed"])
    assert json.loads(zero.read_text())["zero_optimization"]["stage"] == 3
    with pytest.raises(
        UserError, match=r"train.accelerate=fsdp is neither a file nor one of configs/accelerate; did you mean 'fsdp2'"
    ):
        ranks.sharding(with_file(config, "fsdp"))
    other = tmp_path / "tpu.yaml"
    other.write_text("distributed_type: XLA\n")
    with pytest.raises(UserError, match=r"distributed_type=XLA is neither MULTI_GPU, FSDP with fsdp_version 2 nor DEEPSPEED"):
        ranks.sharding(with_file(config, str(other)))


def test_processes_that_would_each_hold_all_weights_are_refused(config: RecipeConfig) -> None:
    from accelerate.utils import DistributedType

    def check(name: str, kind: DistributedType, count: int = 2) -> None:
        ranks.check_sharded(with_file(config, name), SimpleNamespace(distributed_type=kind, num_processes=count))

    for name, kind, count in (("fsdp2", "FSDP", 2), ("zero3", "DEEPSPEED", 2), ("ddp", "MULTI_CPU", 2), ("fsdp2", "NO", 1)):
        check(name, DistributedType(kind), count)
    with pytest.raises(
        UserError, match=r"train.accelerate=fsdp2: accelerate does not shard over these 2 processes \(MULTI_CPU\)"
    ):
        check("fsdp2", DistributedType.MULTI_CPU)


# --- while it trains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logs", "sentence"),
    [
        ({"loss": float("nan"), "grad_norm": 1.0}, "step 7: loss nan, gradient norm 1.0; lower optim.learning_rate"),
        ({"loss": 2.0, "grad_norm": float("inf")}, "step 7: loss 2.0, gradient norm inf"),
        (
            {"loss": 0.0, "grad_norm": 0.0},
            r"step 7: the gradient is 0 \(loss 0\), so that nothing is trained; look at the data",
        ),
    ],
)
def test_a_run_that_learns_nothing_is_ended(logs: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Soundness().on_log(None, SimpleNamespace(global_step=7), None, logs=logs)
    Soundness().on_log(None, SimpleNamespace(global_step=7), None, logs={"loss": 2.0, "grad_norm": 1.0})
    Soundness().on_log(None, SimpleNamespace(global_step=7), None, logs={"eval_loss": 2.0})


def test_a_gradient_of_0_ends_the_run_itself(tmp_path: Path, chat_folder: Path, capsys: Any, monkeypatch: Any) -> None:
    from post_training.recipes import trainers

    original = trainers.Supervised.compute_loss
    monkeypatch.setattr(trainers.Supervised, "compute_loss", lambda *a, **k: original(*a, **k) * 0)
    assert run("sft", write_config(tmp_path, "sft", chat_folder)) == 93
    assert "error: step 1: the gradient is 0 (loss 0)" in capsys.readouterr().err


def look(optimizer: Any, model: torch.nn.Module | None = None) -> None:
    """Before the first step that changes weights."""
    Soundness().on_pre_optimizer_step(None, None, None, optimizer=optimizer, model=model or torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("weight", "gradient"), [(torch.bfloat16, None), (torch.bfloat16, torch.bfloat16)])
def test_master_weights_below_fp32_are_refused(weight: Any, gradient: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=weight))
    parameter.grad = None if gradient is None else torch.ones(2, dtype=gradient)
    with pytest.raises(UserError, match=r"master weights and gradients are torch\.bfloat16 and not fp32 alone"):
        look(torch.optim.SGD([parameter], lr=1.0))
    look(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0))


def test_deepspeeds_own_masters_are_those_that_are_looked_at() -> None:
    """It trains flat copies; the model's weights beside them are in bf16."""

    def zero3(kind: torch.dtype) -> Any:
        own = SimpleNamespace(fp32_partitioned_groups_flat=[torch.nn.Parameter(torch.ones(2, dtype=kind))])
        return SimpleNamespace(optimizer=own, param_groups=[{"params": [torch.nn.Parameter(torch.ones(2).bfloat16())]}])

    look(zero3(torch.float32))
    with pytest.raises(UserError, match=r"master weights and gradients are torch\.bfloat16 and not fp32 alone"):
        look(zero3(torch.bfloat16))


def test_sums_over_ranks_below_fp32_are_refused() -> None:
    """Of FSDP2, which otherwise sums in the precision of the computation."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    def sharded(**policy: torch.dtype) -> torch.nn.Module:
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        fully_shard(layers[0], mp_policy=MixedPrecisionPolicy(**policy))
        return layers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        look(optimizer, sharded())
        look(optimizer, sharded(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
        with pytest.raises(UserError, match=r"FSDP2 sums gradients over ranks in torch\.bfloat16 and not in fp32"):
            look(optimizer, sharded(param_dtype=torch.bfloat16))
    finally:
        torch.distributed.destroy_process_group()


def test_a_push_that_failed_is_told_with_its_command(tmp_path: Path, capsys: Any) -> None:
    pusher = Pusher("my-org/model")
    pusher.push(tmp_path / "step_4")  # which is not there
    pusher.wait()
    assert f"not pushed; give this again: python -m conversion push {tmp_path}/step_4 my-org/model --revision step-4" in (
        capsys.readouterr().err
    )
