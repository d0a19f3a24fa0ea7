"""What goes on top of the YAML files of a configuration: overrides and variables of the environment."""

from pathlib import Path

import pytest
from config_sections import Run, Stage, refused, write

from smol_config import (
    load,
    load_mapping,
    unset_variables,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "run.yaml", "optim: {rate: 0.1}\nstages: [{name: a, steps: 5}, {name: b}]\ntitle: base\n")
    return tmp_path


# --- overrides ---------------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_later_ones_over_earlier(folder: Path) -> None:
    config = load(Run, folder / "run.yaml", ["optim.rate=0.2", "optim.rate=0.3", "optim.betas=[0.5, 0.6]", "title=a=b"])
    assert (config.optim.rate, config.optim.betas, config.title) == (0.3, (0.5, 0.6), "a=b")


def test_overrides_address_lists_by_index(folder: Path) -> None:
    config = load(Run, folder / "run.yaml", ["stages.1.steps=20", 'stages.0={"name": "z"}'])
    assert config.stages == [Stage(name="z"), Stage(name="b", steps=20)]


def test_overrides_make_sections_and_take_keys_away(folder: Path) -> None:
    config = load(Run, folder / "run.yaml", ["extra.name=new", "suites.x.name=deep", "title=null", "stages.0.steps="])
    assert (config.extra, config.suites) == (Stage(name="new"), {"x": Stage(name="deep")})
    assert (config.title, config.stages[0].steps) == ("untitled", 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rate", "is not of the form section.key=value"),
        ("=3", "is not of the form section.key=value"),
        ("title=[1", "the value is not valid YAML; quote it"),
        ("stages.2.steps=1", "'2' is not an index into a list of 2; use 0 to 1"),
        ("stages.first.steps=1", "'first' is not an index into a list of 2"),
        ("stages.-1=1", "'-1' is not an index into a list of 2"),
        ("stages.9=1", "'9' is not an index into a list of 2"),
        ("numbers.0.x=1", "'x' is not inside a section or a list"),
        ("numbers.0.x.y=1", "'x' is not inside a section or a list"),
        ("nothing.0=1", "'0' is not an index into a list of 0; it has none"),
    ],
)
def test_overrides_that_lead_nowhere_are_refused(folder: Path, override: str, message: str) -> None:
    path = write(folder, "child.yaml", "base: run.yaml\nnumbers: [1]\nnothing: []\n")
    text = refused(load_mapping, path, [override])
    assert message in text and repr(override) in text


def test_a_misspelt_override_is_refused_with_the_near_name(folder: Path) -> None:
    assert "optim.raet: unknown key; did you mean 'rate'?" in refused(load, Run, folder / "run.yaml", ["optim.raet=1"])


# --- environment -------------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMOL_SET", "/data")
    monkeypatch.setenv("SMOL_NUMBER", "7")
    for name in ("SMOL_UNSET", "SMOL_OTHER"):
        monkeypatch.delenv(name, raising=False)
    return write(
        folder,
        "env.yaml",
        'base: run.yaml\ntitle: "${SMOL_SET}/x"\nstages: [{name: "${SMOL_UNSET}", steps: "${SMOL_NUMBER}"}]\n',
    )


def test_variables_are_filled_in_from_the_environment(paths: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOL_UNSET", "now-set")
    config = load(Run, paths)
    assert (config.title, config.stages) == ("/data/x", [Stage(name="now-set", steps=7)])


def test_all_unset_variables_are_named_at_once(paths: Path) -> None:
    message = refused(load, Run, paths, ["optim.kind=${SMOL_OTHER}"])
    assert "${SMOL_OTHER}, ${SMOL_UNSET} not set in the environment; export SMOL_OTHER=... SMOL_UNSET=... first" in message


def test_unset_variables_can_be_kept_as_written_and_listed(paths: Path) -> None:
    assert load(Run, paths, keep_unset=True).stages[0].name == "${SMOL_UNSET}"
    assert unset_variables(paths, ["title=${SMOL_OTHER}"]) == ["SMOL_OTHER", "SMOL_UNSET"]


def test_a_value_from_the_environment_is_not_expanded_again(paths: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOL_UNSET", "${SMOL_SET}")
    assert load(Run, paths).stages[0].name == "${SMOL_SET}"


def test_a_variable_in_a_key_that_is_taken_away_is_not_needed(paths: Path) -> None:
    assert load(Run, paths, ["stages=null"]).title == "/data/x"
