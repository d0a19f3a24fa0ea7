"""Several processes, by torchrun over gloo, as on a machine of several GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grpo_kit import grpo_config, undecided
from recipe_kit import metrics, run, write_config
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow  # each process loads torch, transformers and TRL


def two_processes(recipe: str, config: Path, kind: str | None = None) -> subprocess.CompletedProcess[str]:
    """`kind` is train.accelerate; for fsdp2 accelerate is told that CPUs shard."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(Path(__file__).with_name("fsdp2_on_cpus.py"))] if kind == "fsdp2" else ["-m", "post_training"]
    command = [*launcher, *program, recipe, "--config", str(config), *([f"train.accelerate={kind}"] if kind else [])]
    found_here = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.run(command, env=found_here, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(("recipe", "kind"), [("sft", "ddp"), ("sft", "fsdp2"), ("preference", "ddp"), ("preference", "fsdp2")])
def test_two_processes_give_one_process_losses(recipe: str, kind: str, tmp_path: Path, chat_folder: Path) -> None:
    changes: dict[str, Any] = {"train": {"steps": 4, "global_batch_size": 4}, "checkpoint": {"every_steps": 2}}
    alone = write_config(tmp_path / "alone", recipe, chat_folder, changes)
    shared = write_config(tmp_path / "shared", recipe, chat_folder, changes)
    assert run(recipe, alone) == 0
    result = two_processes(recipe, shared, kind)
    assert result.returncode == 0, result.stderr
    lines, expected = metrics(tmp_path / "shared/run"), metrics(tmp_path / "alone/run")
    assert [line["tokens"] for line in lines] == [line["tokens"] for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        assert line["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-5)  # fp32, sums in another order
        assert line["train/grad_norm"] == pytest.approx(wanted["train/grad_norm"], rel=1e-4)
    weights, wanted = (load_file(tmp_path / name / "run/hf/step_4/model.safetensors") for name in ("shared", "alone"))
    assert all(abs(weights[name] - wanted[name]).max() < 1e-4 for name in wanted)  # of steps of 1e-3


def test_fsdp2_goes_on_where_it_stopped_with_fp32_masters_under_bf16(tmp_path: Path, chat_folder: Path) -> None:
    """Soundness ends a run whose masters, gradients or sums of gradients over ranks are not fp32."""
    changes: dict[str, Any] = {"train": {"steps": 4, "precision": "bf16"}, "checkpoint": {"every_steps": 2}}
    config = write_config(tmp_path, "sft", chat_folder, changes)
    result = two_processes("sft", config, "fsdp2")
    assert result.returncode == 0, result.stderr
    whole = metrics(tmp_path / "run")
    for name in ("iter_0000004", "hf/step_4"):
        (tmp_path / "run" / name).rename(tmp_path / name.replace("/", "_"))
    result = two_processes("sft", config, "fsdp2")
    assert result.returncode == 0 and "goes on from step 2" in result.stdout, result.stderr
    for line, wanted in zip(metrics(tmp_path / "run"), whole, strict=True):
        assert (line["step"], line["tokens"], line["train/loss"]) == (wanted["step"], wanted["tokens"], wanted["train/loss"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_group_that_two_processes_sample_is_compared_as_one(kind: str, tmp_path: Path, chat_folder: Path) -> None:
    """Each process samples eight of sixteen answers to each question, not the same ones, and the reward rises."""
    changes: dict[str, Any] = {"train": {"steps": 10, "micro_batch_size": 8}, "grpo": {"answers": 16, "max_answer": 4}}
    config = grpo_config(tmp_path, undecided(tmp_path / "start", chat_folder), changes)
    result = two_processes("grpo", config, kind)
    assert result.returncode == 0, result.stderr
    found = metrics(tmp_path / "run")
    rewards = [line["train/rewards/accuracy/mean"] for line in found]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.5
    assert [line["tokens"] for line in found] == sorted({line["tokens"] for line in found})
    first = [json.loads(line) for line in (tmp_path / "run/answers.jsonl").read_text().splitlines()][:16]
    assert len({str(line["prompt"]) for line in first}) == 1
    assert [line["answer"] for line in first[:8]] != [line["answer"] for line in first[8:]]


def test_what_rank_0_refuses_ends_all(tmp_path: Path, chat_folder: Path) -> None:
    config = write_config(tmp_path, "sft", chat_folder)
    (tmp_path / "sums.jsonl").write_text('{"messages": [{"role": "user", "content": "Why?"}]}\n')
    result = two_processes("sft", config)
    assert result.returncode != 0
    assert "error: the data is not fit to train on" in result.stderr
    assert "error on rank 1: the data is not fit to train on" in result.stderr


def test_sharding_that_accelerate_would_leave_out_is_refused(tmp_path: Path, chat_folder: Path) -> None:
    result = two_processes("sft", write_config(tmp_path, "sft", chat_folder, {"train": {"accelerate": "fsdp2"}}), kind=None)
    assert (
        result.returncode != 0 and "train.accelerate=fsdp2: accelerate does not shard over these 2 processes" in result.stderr
    )
    assert not (tmp_path / "run/metrics.jsonl").exists()
