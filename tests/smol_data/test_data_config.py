"""The `data:` section: stages that keep a share of the mixture before them, and settings that do not fit each other."""

import pytest
import yaml

from smol_config import ConfigError, parse, to_yaml
from smol_data.config import DataConfig

BASE = {
    "tokenizer": "t",
    "sequence_length": 8,
    "datasets": {"web": "w", "code": "c", "candidate": "x"},
}


def data(*stages: dict, **changes: object) -> DataConfig:
    return parse(DataConfig, {**BASE, "stages": list(stages), **changes}, source="test.yaml")


def stage(name: str, steps: int = 10, **fields: object) -> dict:
    return {"name": name, "steps": steps, **fields}


STABLE = stage("stable", weights={"web": 3, "code": 1})


def test_an_annealing_stage_is_one_line_of_yaml() -> None:
    line = yaml.safe_load("{name: anneal, steps: 5, keep: 0.4, weights: {candidate: 1}}")
    anneal = data(STABLE, line).stages[1]
    assert anneal.weights == pytest.approx({"web": 0.3, "code": 0.1, "candidate": 0.6})
    assert anneal.keep is None


def test_what_is_kept_adds_to_what_the_stage_names_itself() -> None:
    anneal = data(STABLE, stage("anneal", keep=0.5, weights={"web": 10, "candidate": 10})).stages[1]
    assert anneal.weights == pytest.approx({"web": 0.375 + 0.25, "code": 0.125, "candidate": 0.25})


def test_a_chain_keeps_of_what_was_kept() -> None:
    chain = data(STABLE, stage("a", keep=0.5, weights={"candidate": 1}), stage("b", keep=0.5, weights={"code": 1}))
    assert chain.stages[2].weights == pytest.approx({"web": 0.1875, "code": 0.5625, "candidate": 0.25})


def test_the_resolved_configuration_reads_back_to_the_same_weights() -> None:
    """A run stores it: the share must not be kept a second time."""
    resolved = data(STABLE, stage("anneal", keep=0.4, weights={"candidate": 1}))
    again = parse(DataConfig, yaml.safe_load(to_yaml(resolved)), source="run.yaml")
    assert again == resolved


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [stage("first", keep=0.4, weights={"web": 1})],
            "'first' is the first and has no mixture before it to keep; remove keep",
        ),
        ([STABLE, stage("s", keep=1.0, weights={"web": 1})], "keep: Input should be less than 1"),
        ([STABLE, stage("s", keep=0.0, weights={"web": 1})], "keep: Input should be greater than 0"),
        ([STABLE, stage("s", keep=0.4, weights={})], "name no dataset with a share above 0"),
        ([STABLE, stage("s", keep=0.4, weights={"wbe": 1})], "'wbe' is not in data.datasets; did you mean 'web'"),
        ([STABLE, stage("s", weights={"web": -1})], "must be finite and not negative"),
        ([STABLE, stage("stable", weights={"web": 1})], "names .* stand more than once"),
        ([{"name": "s", "weights": {"web": 1}}], "steps=None and tokens=None: give one of the two"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data(*stages)


def test_a_skipped_range_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"skip_samples: \[\(5, 5\)\] are not ranges"):
        data(STABLE, skip_samples=[(5, 5)])
