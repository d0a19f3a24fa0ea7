"""Every configuration in configs/ loads, plans, and is what its comments say."""

import re
from pathlib import Path

import pytest
import yaml

import smol_config
from post_training.recipes.config import RECIPES, PreferenceConfig
from smol_model.config import ModelConfig
from smol_train.config import RunConfig
from smol_train.gpus import GPUS
from smol_train.plan import plan
from smol_train.schedule import learning_rate
from smol_train.speed import step_time

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
MAPPINGS = {path: smol_config.load_mapping(path, keep_unset=True) for path in FILES}
RUNS = [path for path, mapping in MAPPINGS.items() if "stages" in mapping.get("data", {}) and "train" in mapping]
"""Whole ones: some files are the data alone."""
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))
RECIPE_FILES = [path for path in FILES if path.stem in RECIPES and CONFIGS / "post_training" in path.parents]
"""Not the sweeps of configs/ablations, some of which are called as the recipe that they compare."""


def relative(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def model(name: str) -> ModelConfig:
    mapping = smol_config.load_mapping(CONFIGS / "models" / name)
    return smol_config.parse(ModelConfig, mapping["model"], source=name, at="model")


def smollm3() -> RunConfig:
    return smol_config.load(RunConfig, CONFIGS / "smollm3/pretrain.yaml", keep_unset=True)


@pytest.mark.parametrize("path", RUNS, ids=relative)
def test_every_run_plans_without_data_or_environment(path: Path) -> None:
    config = smol_config.load(RunConfig, path, keep_unset=True)
    result = plan(config)
    assert result.train_tokens == config.train_steps * config.tokens_per_step > 0
    assert set(config.data.held_out) <= set(config.data.datasets)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_opens_with_a_comment_that_says_what_it_is(path: Path) -> None:
    assert re.match(r"# \w.{30,}", path.read_text(encoding="utf8"))


@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_every_model_has_the_parameters_that_its_comment_names(path: Path) -> None:
    counts = re.findall(r"([\d,]+|about \d+ million) parameters", path.read_text(encoding="utf8"))
    assert len(counts) == 1
    if counts[0].startswith("about"):
        assert round(model(path.name).parameters / 1e6) == int(counts[0].split()[1])
    else:
        assert f"{model(path.name).parameters:,}" == counts[0]


def test_the_64k_run_needs_the_memory_that_its_comment_names() -> None:
    path, seconds = CONFIGS / "smollm3/long_64k.yaml", {}
    for recompute, gib in {"full": 17, "selective": 23, "none": 40}.items():
        config = smol_config.load(RunConfig, path, [f"parallel.recompute={recompute}"], keep_unset=True)
        assert round(plan(config, gpus=96).memory["bf16"].total / 2**30) == gib
        seconds[recompute] = step_time(config, 96, GPUS["h100"]).total
    slower = {recompute: round(100 * (1 - seconds["none"] / seconds[recompute])) for recompute in seconds}
    assert slower == {"full": 22, "selective": 6, "none": 0}  # docs/parallelism.md
    assert 'By the plan 17 GiB a GPU; "selective" needs 23 and "none" 40' in path.read_text(encoding="utf8")


def test_smollm3_has_its_published_size_and_work() -> None:
    smol = model("smollm3_3b.yaml")
    assert smol.parameters == 3_075_098_624
    assert smol.embedding_parameters == 262_668_288
    assert (smol.attention_parameters, smol.mlp_parameters) == (10_485_760, 67_633_152)
    assert f"{smol.flops_per_token(4096) / 1e9:.2f}" == "22.07"
    assert smol.layers_without_rope == [3, 7, 11, 15, 19, 23, 27, 31, 35]
    assert smol.kv_cache_bytes_per_token() == 2 * 36 * 4 * 128 * 2


def test_smollm3_runs_its_published_stages() -> None:
    config = smollm3()
    stages = config.data.stages
    assert [stage.steps for stage in stages] == [3_450_000, 748_000, 522_000]
    assert [len(stage.weights) for stage in stages] == [41, 46, 56]
    assert [sum(stage.weights.values()) for stage in stages] == pytest.approx([1.0, 1.00005, 1.00565], abs=1e-9)
    assert set(config.data.datasets) == {name for stage in stages for name in stage.weights}
    assert config.tokens_per_step == 2_359_296
    assert config.train_steps * config.tokens_per_step == 11_135_877_120_000


@pytest.mark.parametrize(
    ("stage", "web", "multilingual", "code"),
    [(0, 72.8, 12.0, 12.5), (1, 64.9, 11.7, 14.3), (2, 50.4, 13.1, 23.2)],
)
def test_smollm3_mixtures_have_their_known_shares(stage: int, web: float, multilingual: float, code: float) -> None:
    """Shares in percent, computed from the published files independently of this configuration."""
    weights = smollm3().data.stages[stage].weights
    kinds = {
        web: r"(fineweb-edu|dclm|pes2o|wiki|stackexchange|cosmopedia2)$",
        multilingual: r"(fw2-|multilingual_wiki)",
        code: r"(stack-|pull-requests|kaggle|jupyter-scripts|github-issues)",
    }
    for share, pattern in kinds.items():
        found = sum(weight for name, weight in weights.items() if re.match(pattern, name))
        assert 100 * found / sum(weights.values()) == pytest.approx(share, abs=0.06)


def test_smollm3_decays_during_its_last_stage() -> None:
    config = smollm3()
    before_last_stage = sum(config.stage_steps[:-1])
    rates = [learning_rate(config.optim, config.train_steps, step) for step in (2000, before_last_stage, config.train_steps)]
    assert rates == [2.0e-4, 2.0e-4, 0.0]


def test_the_branch_repeats_what_its_run_has_trained() -> None:
    """Other weights, or a batch or seed of its own, would be refused when it starts."""
    branch, run = (
        smol_config.load(RunConfig, CONFIGS / name, keep_unset=True)
        for name in ("examples/decay_branch.yaml", "scaling/135m_8gpu.yaml")
    )
    stable, anneal = branch.data.stages
    assert branch.start_from is not None and branch.start_from.optimizer and branch.start_from.data_position
    assert branch.start_from.checkpoint == f"{run.train.output_dir}/iter_{stable.steps:07d}"
    assert stable.steps % (run.checkpoint.keep_every_steps or 0) == 0 and stable.steps < run.stage_steps[0]
    assert stable.weights == run.data.stages[0].weights and branch.data.seed == run.data.seed
    assert branch.train.output_dir != run.train.output_dir
    assert anneal.steps == branch.optim.schedule.decay_steps
    assert anneal.weights["finemath-4plus"] == pytest.approx(0.3)


def test_numbers_are_written_so_that_every_yaml_reader_takes_them_for_numbers() -> None:
    """2e-4 without a point is text in YAML 1.1; smol_config reads it, other tools may not."""

    def texts(value: object) -> list[str]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [value] if isinstance(value, str) else [text for item in items for text in texts(item)]

    for path in FILES:
        found = texts(yaml.safe_load(path.read_text(encoding="utf8")))
        assert not [text for text in found if re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", text)], path


@pytest.mark.parametrize("path", RECIPE_FILES, ids=relative)
def test_every_recipe_of_post_training_loads(path: Path) -> None:
    config = smol_config.load(RECIPES[path.stem], path, keep_unset=True)
    assert config.train.accelerate is None or (CONFIGS / f"accelerate/{config.train.accelerate}.yaml").is_file()


def test_smollm3s_post_training_has_the_published_values() -> None:
    """alignment-handbook 925acdf: mid.yaml, sft.yaml, apo.yaml."""
    found = {
        name: smol_config.load(RECIPES[name], CONFIGS / f"post_training/smollm3/{name}.yaml", keep_unset=True)
        for name in ("mid", "sft", "preference")
    }
    lengths = {name: config.data.max_length for name, config in found.items()}
    assert lengths == {"mid": 32768, "sft": 65536, "preference": 24576}
    rates = {name: (config.optim.learning_rate, config.optim.schedule.warmup_share) for name, config in found.items()}
    assert rates == {"mid": (2e-5, 0.03), "sft": (2e-5, 0.03), "preference": (1e-6, 0.1)}
    batches = {name: (config.train.global_batch_size, config.train.epochs) for name, config in found.items()}
    assert batches == {"mid": (128, 5), "sft": (128, 5), "preference": (32, 1)}
    assert all(config.optim.clip_grad_norm == 0.2 and config.optim.schedule.min_share == 0.1 for config in found.values())
    assert (found["mid"].data.loss_on, found["sft"].data.loss_on) == ("all", "assistant")
    preference = found["preference"]
    assert isinstance(preference, PreferenceConfig) and (preference.preference.loss, preference.preference.beta) == (
        "apo_zero",
        0.05,
    )
    shares = sorted(source.share for source in found["sft"].data.sources if source.share)
    assert len(found["sft"].data.sources) == 25 and shares == [0.02, 0.3, 0.4, 0.5, 0.5]
