"""The same configuration and seed give the same losses and weights, bit for bit; train.deterministic and its environment."""

import os
from typing import Any

import jobs
import pytest
import torch
from ranks import Ranks

from smol_config import ConfigError, load
from smol_train.config import RunConfig
from smol_train.determinism import ENVIRONMENT, deterministic


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the variables, and without what a test sets."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    return monkeypatch


def train_deterministically(overrides: list[str]) -> dict[str, Any]:
    """As pretrain_smol.py with train.deterministic; also says what torch was told while it ran."""
    with deterministic(load(RunConfig, jobs.QUICKSTART, overrides).train.deterministic):
        asked = torch.are_deterministic_algorithms_enabled()
        return {"asked": asked, **jobs.train(overrides)}


@pytest.mark.parametrize(("world", "precision"), [(1, "fp32"), (2, "bf16")])
def test_a_run_repeats_itself_bit_for_bit(world: int, precision: str, ranks: Ranks, overrides: list[str]) -> None:
    settings = [*overrides, f"train.precision={precision}"]
    first, second = (ranks.run(jobs.train, world, overrides=settings) for _ in range(2))
    assert [rank["steps"] for rank in first] == [rank["steps"] for rank in second]
    assert [rank["weights"] for rank in first] == [rank["weights"] for rank in second]
    other = ranks.run(jobs.train, world, overrides=[*settings, "train.seed=7"])
    assert other[0]["weights"] != first[0]["weights"] and other[0]["loss"] != first[0]["loss"]


def test_the_switch_finds_no_operation_without_a_deterministic_form(ranks: Ranks, overrides: list[str]) -> None:
    [plain] = ranks.run(jobs.train, 1, overrides=overrides)
    [switched] = ranks.run(train_deterministically, 1, overrides=[*overrides, "train.deterministic=true"])
    assert switched["asked"]
    assert switched["loss"] == pytest.approx(plain["loss"], abs=2e-6)


def test_the_switch_sets_what_the_libraries_read_and_is_undone(clean_environment: pytest.MonkeyPatch) -> None:
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert not set(ENVIRONMENT) & set(os.environ)
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert {name: os.environ[name] for name in ENVIRONMENT} == {
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "NCCL_ALGO": "Ring",
            "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
        }
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_environment_that_says_otherwise_is_refused(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    with (
        pytest.raises(ConfigError, match=r"needs NVTE_ALLOW_NONDETERMINISTIC_ALGO=0, but the environment has 1; unset it"),
        deterministic(True),
    ):
        pass
