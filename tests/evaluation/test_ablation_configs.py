"""configs/ablations/: every sweep parses, every arm plans, and arms differ from their baseline by what their names say."""

from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

from evaluation.ablations.sweep import Sweep, current_round, load_sweep
from evaluation.suite import load_suite
from smol_config import load_mapping, parse
from smol_train.config import RunConfig
from smol_train.plan import plan

CONFIGS = REPOSITORY / "configs" / "ablations"
SWEEPS = [path for path in sorted(CONFIGS.rglob("*.yaml")) if "changes" in load_mapping(path, keep_unset=True)]


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
    monkeypatch.setenv("RUN_ROOT", "/runs")
    monkeypatch.setenv("DATA_ROOT", "/data")
    return load_sweep(request.param)


@pytest.mark.parametrize("sweep", SWEEPS, ids=relative, indirect=True)
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
    assert sweep.suite is None or load_suite(sweep.suite, sweep.suite_overrides).selected("development")
    folders = [load_mapping(other)["output"] for other in SWEEPS if other != path]
    assert str(sweep.output) not in folders


def test_the_sweeps_are_those_of_the_playbook() -> None:
    assert {path.stem for path in SWEEPS if path.parent == CONFIGS} == {
        *("attention", "embeddings", "positions", "schedule", "smollm3_order", "learning_rate", "batch", "layout"),
        *("web_mixture", "code_share", "multilingual_share", "annealing", "rope_theta", "scaling"),
    }


def test_annealing_gives_three_fifths_to_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    found = arms(CONFIGS / "annealing.yaml", load_sweep(CONFIGS / "annealing.yaml"))
    running, stage = found["baseline"].data.stages
    assert {name: stage.weights[name] for name in running.weights} == pytest.approx(running.weights)
    weights = found["megamath"].data.stages[1].weights
    assert weights["megamath-web-pro"] == weights["megamath-text-code-block"] == pytest.approx(0.3)
    assert weights["dclm"] == pytest.approx(0.4 * running.weights["dclm"])


def test_the_first_ablations_have_the_sizes_that_the_playbook_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    sizes = {}
    for name in ("attention", "embeddings"):
        found = arms(CONFIGS / f"{name}.yaml", load_sweep(CONFIGS / f"{name}.yaml"))
        sizes |= {arm: config.model.parameters / 1e9 for arm, config in found.items()}
    named = {"mqa": 1.21, "groups-of-16": 1.21, "groups-of-8": 1.22, "baseline": 1.24, "groups-of-2": 1.22, "mha": 1.20}
    assert {arm: sizes[arm] for arm in named} == pytest.approx(
        named, rel=0.012
    )  # its own figures are rounded, 1.206 to 1.22 too
    assert sizes["untied-12-layers"] == pytest.approx(sizes["baseline"], rel=0.03) and sizes["untied"] > 1.45
