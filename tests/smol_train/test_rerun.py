"""NaN: whether it comes again when the step is computed again decides what is done, and where it began is told."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks
from spike_jobs import train_with_fault

from smol_train.launch import host_name

SETTINGS = ["data.stages.0.steps=4", "data.stages.1.steps=4", "checkpoint.every_steps=2"]


def run(overrides: list[str], name: str) -> list[str]:
    output = next(item for item in overrides if item.startswith("train.output_dir="))
    return [*overrides, *SETTINGS, f"{output}/{name}"]


def lines(settings: list[str], name: str) -> list[dict[str, Any]]:
    path = Path(settings[-1].removeprefix("train.output_dir=")) / name
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("layout", "world", "rank", "where", "told"),
    [
        ([], 2, 1, "loss", [(1, "loss")]),
        ([], 2, 1, "gradient", [(1, "gradient before it was reduced")]),
        (["parallel.pipeline=2"], 4, 3, "gradient", [(3, "gradient before it was reduced")]),
    ],
    ids=["loss", "gradient", "gradient, PP2 x DP2"],
)
def test_a_nan_that_does_not_come_again_names_the_rank_and_ends_the_run_for_another_node(
    layout: list[str], world: int, rank: int, where: str, told: list[tuple[int, str]], ranks: Ranks, overrides: list[str]
) -> None:
    settings = [*layout, *run(overrides, "errs")]
    clean = {"rank": 0, "at_step": 99, "where": "", "times": 0}
    whole = ranks.run(train_with_fault, world, overrides=[*layout, *run(overrides, "whole")], **clean)
    ended = ranks.run(train_with_fault, world, overrides=settings, rank=rank, at_step=3, where=where, times=1)
    assert [result["code"] for result in ended] == [85] * world
    assert [(line["rank"], line["where"]) for line in lines(settings, "suspects.jsonl")] == told
    assert [line["event"] for line in lines(settings, "alerts.jsonl")] == ["started", "nan", "stopped"]
    again = ranks.run(train_with_fault, world, overrides=settings, **clean)
    assert again[0]["start"] == 2, "nothing of the step, nor of the node, was saved"
    assert [result["code"] for result in again] == [0] * world
    assert [result["weights"] for result in again] == [result["weights"] for result in whole]


def test_a_nan_that_comes_again_costs_its_update_and_training_goes_on(ranks: Ranks, overrides: list[str]) -> None:
    settings = run(overrides, "data")
    results = ranks.run(train_with_fault, 2, overrides=settings, rank=1, at_step=3, where="loss", times=1000)
    for result in results:
        assert result["code"] == 0
        assert [step["step"] for step in result["steps"] if not step["updated"]] == [4]
        assert [step["step"] for step in result["steps"][:-1] if not step["moved"]] == [4]
    assert [line["event"] for line in lines(settings, "alerts.jsonl")] == ["started", "nan", "done"]


def test_a_node_is_called_as_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert host_name() == socket.gethostname()
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    assert host_name() == "gpu-17"
