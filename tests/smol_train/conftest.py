"""The self-test's checks on the tests' pool of ranks."""

from pathlib import Path

import pytest
from ranks import Ranks
from selftest_jobs import MakeSetting, PoolCrew
from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.config import RunConfig
from smol_train.selftests.base import Setting


@pytest.fixture
def make_setting(ranks: Ranks, overrides: list[str], tmp_path: Path) -> MakeSetting:
    """setting(world_size, *settings, fault, steps): what a check is given, with that fault in its ranks."""

    def setting(world_size: int, *settings: str, fault: str = "", steps: int = 8) -> Setting:
        config = load(RunConfig, QUICKSTART, [*overrides, "train.backend=torch", *settings])
        return Setting(config, PoolCrew(ranks, world_size, fault), world_size, tmp_path / "scratch", steps, seed=3)

    return setting
