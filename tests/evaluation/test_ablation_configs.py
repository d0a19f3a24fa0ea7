"""configs/ablations/: every sweep parses, every arm plans, and arms differ from their baseline by what their names say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

from evaluation.ablations.sweep import Sweep, current_round, load_sweep
from evaluation.suite import load_suite
from post_training.recipes.config import RECIPES, GrpoConfig, PreferenceConfig, RecipeConfig
from smol_config import load_mapping, parse
from smol_train.config import RunConfig
from smol_train.plan import plan

CONFIGS = REPOSITORY / "configs" / "ablations"
MAPPINGS = {path: load_mapping(path, keep_unset=True) for path in sorted(CONFIGS.rglob("*.yaml"))}
SWEEPS = [path for path, mapping in MAPPINGS.items() if "changes" in mapping]
PRETRAINING = [path for path in SWEEPS if "recipe" not in MAPPINGS[path]]
POST_TRAINING = [path for path in SWEEPS if path not in PRETRAINING]


Arms = Callable[[str], dict[str, RecipeConfig]]


def relative(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def arms(path: Path, sweep: Sweep) -> dict[str, RunConfig]:
    """All of a sweep, those of later rounds on its baseline."""
    everything = sweep.model_copy(update={"ordered": False})
    return {
        arm.name: parse(RunConfig, arm.runs[0].mapping, source=f"{path}: {arm.name}") for arm in current_round(everything).arms
    }


@pytest.fixture
def sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    for name in ("RUN_ROOT", "DATA_ROOT", "MODEL", "MID_MODEL", "PROMPTS"):
        monkeypatch.setenv(name, f"/{name.lower()}")
    return load_sweep(request.param)


def assert_suite_and_folder(path: Path, sweep: Sweep) -> None:
    """Tasks that decide, and a folder of its own."""
    assert sweep.suite is None or load_suite(sweep.suite, sweep.suite_overrides).selected("development")
    folders = [load_mapping(other)["output"] for other in SWEEPS if other != path]
    assert str(sweep.output) not in folders


@pytest.mark.parametrize("sweep", PRETRAINING, ids=relative, indirect=True)
def test_every_arm_of_every_sweep_plans_and_stands_beside_its_baseline(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    path = request.node.callspec.params["sweep"]
    found = arms(path, sweep)
    plans = {name: plan(config) for name, config in found.items()}
    assert len({config.model_dump_json() for config in found.values()}) == len(found)
    for name, config in found.items():
        assert config.data.held_out and config.train.purpose == "ablation", name
        schedule = config.optim.schedule
        if schedule.decay_steps and len(config.stage_steps) > 1:
            assert schedule.decay_steps == config.stage_steps[-1], name
        tokens = plans[name].train_tokens / plans["baseline"].train_tokens
        assert "scaling" in path.stem or tokens == pytest.approx(1, rel=1e-3), name
    assert_suite_and_folder(path, sweep)


def test_the_sweeps_are_those_of_the_playbook() -> None:
    assert {path.stem for path in SWEEPS if path.parent == CONFIGS} == {
        *("attention", "embeddings", "positions", "schedule", "smollm3_order", "learning_rate", "batch", "layout"),
        *("web_mixture", "code_share", "multilingual_share", "annealing", "rope_theta", "scaling"),
    }


TINY = {"smollm3_order": "ordered", "annealing": "anneal"} | dict.fromkeys(
    ("web_mixture", "code_share", "multilingual_share"), "mixture"
)
"""Full sweep -> the tiny one that goes through the same steps, where the names differ. The laptop's corpus has two sources and
neither web text nor other languages, so one sweep stands for every share of a mixture."""


def test_every_full_sweep_has_one_that_a_laptop_runs() -> None:
    tiny = {path.stem for path in SWEEPS if path.parent == CONFIGS / "tiny"}
    full = {path.stem for path in SWEEPS if path.parent == CONFIGS}
    assert {TINY.get(name, name) for name in full} | {"learning_rate_long"} == tiny


@pytest.mark.parametrize("name", ["smollm3_order", "tiny/ordered"])
def test_an_order_leads_from_llamas_architecture_to_smollm3s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(variable, "/somewhere")
    path = CONFIGS / f"{name}.yaml"
    sweep = load_sweep(path)
    assert sweep.ordered
    found = arms(path, sweep)
    assert list(found) == ["baseline", "tied", "gqa", "document-mask", "nope", "no-embedding-decay"]

    def choices(config: RunConfig) -> tuple[object, ...]:
        model = config.model
        groups, decayed = model.num_query_groups < model.num_attention_heads, not config.optim.no_weight_decay
        return model.tie_embeddings, groups, config.data.document_mask, model.no_rope, decayed

    assert choices(found["baseline"]) == (False, False, False, None, True)
    smollm3 = (True, True, True, 4, False)
    for place, arm in enumerate(found.values()):
        taken = range(place - 1, place) if place else ()
        expected = [
            now if at in taken else was for at, (was, now) in enumerate(zip(choices(found["baseline"]), smollm3, strict=True))
        ]
        assert choices(arm) == tuple(expected)


def test_shapes_that_are_compared_on_a_laptop_have_as_many_parameters() -> None:
    for name, unequal in (("attention", ()), ("layout", ()), ("embeddings", ("untied",))):
        path = CONFIGS / "tiny" / f"{name}.yaml"
        sizes = {arm: config.model.parameters for arm, config in arms(path, load_sweep(path)).items() if arm not in unequal}
        assert list(sizes.values()) == pytest.approx([sizes["baseline"]] * len(sizes), rel=0.035), name


def test_annealing_gives_three_fifths_to_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    found = arms(CONFIGS / "annealing.yaml", load_sweep(CONFIGS / "annealing.yaml"))
    running, stage = found["baseline"].data.stages
    assert {name: stage.weights[name] for name in running.weights} == pytest.approx(running.weights)
    weights = found["megamath"].data.stages[1].weights
    assert weights["megamath-web-pro"] == weights["megamath-text-code-block"] == pytest.approx(0.3)
    assert weights["dclm"] == pytest.approx(0.4 * running.weights["dclm"])


def test_the_rotary_base_is_judged_at_the_lengths_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    sweep = load_sweep(CONFIGS / "rope_theta.yaml")
    assert sweep.suite
    suite = load_suite(sweep.suite, sweep.suite_overrides)
    trained = arms(CONFIGS / "rope_theta.yaml", sweep)["baseline"].data.sequence_length
    ruler, short = suite.selected("development")
    assert (ruler.name, short.name) == ("smollm3_ruler", "gsm8k")
    assert suite.max_length == max(suite.data["max_seq_lengths"]) == trained
    assert ruler.metrics == tuple(str(length) for length in suite.data["max_seq_lengths"])


def test_the_first_ablations_have_the_sizes_that_the_playbook_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    sizes: dict[str, float] = {}
    for name in ("attention", "embeddings"):
        found = arms(CONFIGS / f"{name}.yaml", load_sweep(CONFIGS / f"{name}.yaml"))
        sizes |= {arm: config.model.parameters / 1e9 for arm, config in found.items()}
    named = {"mqa": 1.21, "groups-of-16": 1.21, "groups-of-8": 1.22, "baseline": 1.24, "groups-of-2": 1.22, "mha": 1.20}
    assert {arm: sizes[arm] for arm in named} == pytest.approx(
        named, rel=0.012
    )  # its own figures are rounded, 1.206 to 1.22 too
    assert sizes["untied-12-layers"] == pytest.approx(sizes["baseline"], rel=0.03) and sizes["untied"] > 1.45


# --- post-training -----------------------------------------------------------------------------------------------------------


def recipes(path: Path, sweep: Sweep) -> dict[str, RecipeConfig]:
    """All arms, parsed as the recipe does it."""
    kind = RECIPES[str(sweep.recipe)]
    return {arm.name: parse(kind, arm.runs[0].mapping, source=f"{path}: {arm.name}") for arm in current_round(sweep).arms}


@pytest.mark.parametrize("sweep", POST_TRAINING, ids=relative, indirect=True)
def test_every_arm_of_every_recipe_is_another_run_in_the_same_seed(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    path = request.node.callspec.params["sweep"]
    found = recipes(path, sweep)
    apart = {config.model_dump_json(exclude={"train": {"output_dir"}}) for config in found.values()}
    assert len(apart) == len(found)
    assert {(config.train.seed, config.data.seed) for config in found.values()} == {(6, 6)}
    for config in found.values():
        assert config.train.global_batch_size % (config.train.micro_batch_size * sweep.processes) == 0
    assert sweep.suite
    assert_suite_and_folder(path, sweep)


@pytest.fixture
def post_training(monkeypatch: pytest.MonkeyPatch) -> Arms:
    for name in ("RUN_ROOT", "MODEL", "MID_MODEL", "PROMPTS"):
        monkeypatch.setenv(name, f"/{name.lower()}")

    def arms_of(name: str) -> dict[str, RecipeConfig]:
        path = CONFIGS / "post_training" / f"{name}.yaml"
        return recipes(path, load_sweep(path))

    return arms_of


def test_the_comparisons_of_post_training_are_those_of_the_playbook(post_training: Arms) -> None:
    sft = post_training("sft")
    hybrid, instruct, thinking = sft["baseline"], sft["instruct"], sft["thinking"]
    assert (hybrid.optim.learning_rate, hybrid.train.global_batch_size, hybrid.train.epochs) == (1e-5, 128, 1)
    lengths = [config.data.max_length for config in (hybrid, instruct, thinking)]
    assert lengths == [32768, 8192, 32768] and not hybrid.data.packing
    assert [*instruct.data.sources, *thinking.data.sources] == hybrid.data.sources
    assert [{source.mode for source in config.data.sources} for config in (instruct, thinking)] == [{"no_think"}, {"think"}]
    assert sft["mid-trained"].model == "/mid_model" and sft["packed"].data.packing and sft["all-tokens"].data.loss_on == "all"
    assert [sft[f"epochs-{n}"].train.epochs for n in (2, 3, 4, 5)] == [2, 3, 4, 5]


def test_pairs_are_as_many_as_their_arms_say(post_training: Arms) -> None:
    """Of 230,501 and 216,385, as the dataset's card counts them."""
    for name, config in post_training("preference").items():
        assert isinstance(config, PreferenceConfig)
        shares = [source.share or 1 for source in config.data.sources]
        count = 230_501 * shares[0] + 216_385 * shares[1]
        said = int(name.removeprefix("pairs-").removesuffix("k")) * 1000 if name.startswith("pairs") else 169_346
        assert count == pytest.approx(said, rel=0.03), name
        assert not name.startswith("beta") or config.preference.beta == float(name.removeprefix("beta-"))


def test_the_price_on_length_is_whole_where_its_arms_say(post_training: Arms) -> None:
    found = post_training("grpo_length")
    assert {source.mode for config in found.values() for source in config.data.sources} == {"no_think"}
    for name, config in found.items():
        assert isinstance(config, GrpoConfig)
        length = config.rewards.length
        end = length.no_think[1] if length and length.no_think else None
        assert end == {"no-price": None, "baseline": 3072}.get(name, name.startswith("until") and int(name[6:])), name
