"""configs/scaling/: four sizes on 8 to 64 GPUs. What their comments say of memory, days and disk is what the plan says."""

import re
from pathlib import Path

import pytest

import smol_config
from data_tools.catalogue import load_catalogue
from smol_train import plan_text
from smol_train.config import RunConfig
from smol_train.gpus import GPUS
from smol_train.plan import plan
from smol_train.search import USABLE_MEMORY

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted((CONFIGS / "scaling").glob("*gpu.yaml"))


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def load(path: Path) -> RunConfig:
    return smol_config.load(RunConfig, path, keep_unset=True)


def gpus_of(path: Path) -> int:
    match = re.search(r"_(\d+)gpu$", path.stem)
    assert match
    return int(match[1])


def test_there_is_one_for_8_16_32_and_64_gpus() -> None:
    assert sorted(map(gpus_of, FILES)) == [8, 16, 32, 64]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_comment_holds_the_command_and_what_it_prints(path: Path) -> None:
    text, gpus = path.read_text(encoding="utf8"), gpus_of(path)
    result = plan(load(path), gpus=gpus, gpu="h100")
    assert f"--config configs/scaling/{path.name} --gpus {gpus} --gpu h100 --summary" in text
    assert "".join(f"#   {line}\n" for line in plan_text.summary(result).splitlines()) in text
    assert f"{result.tokens_per_step:,} tokens\n" in text
    assert f"micro_batch_size: {load(path).train.micro_batch_size} # {result.micro_batches_per_step} a step" in text
    assert result.memory["bf16"].total < USABLE_MEMORY * GPUS["h100"].memory_gib * 2**30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_all_train_on_a_hundred_billion_tokens_of_one_mixture_and_decay_in_its_last_stage(path: Path) -> None:
    config, first = load(path), load(FILES[0])
    assert 0 <= config.train_steps * config.tokens_per_step - 100e9 < 2 * config.tokens_per_step
    assert config.optim.schedule.decay_steps == config.stage_steps[-1]
    assert config.data.stages == first.data.stages
    assert config.train.output_dir == f"${{RUN_ROOT}}/scaling_{path.stem}"
    assert all(sum(stage.weights.values()) == pytest.approx(1) for stage in config.data.stages)


def test_the_catalogue_knows_where_every_dataset_comes_from() -> None:
    assert set(load(FILES[0]).data.datasets) <= set(load_catalogue(CONFIGS / "smollm3/catalogue.yaml").datasets)
