"""How YAML files become typed sections: merging, messages, round trip."""

from pathlib import Path
from typing import Any

import pytest
from config_sections import Optim, Run, Stage, refused, write
from hypothesis import given, settings
from hypothesis import strategies as st

import smol_config
from smol_config import (
    ConfigError,
    UserError,
    differences,
    load,
    load_mapping,
    nearest,
    parse,
    to_yaml,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "run.yaml", "optim: {rate: 0.1}\nstages: [{name: a, steps: 5}, {name: b}]\ntitle: base\n")
    return tmp_path


# --- bases -------------------------------------------------------------------------------------------------------------


def test_a_base_is_merged_key_by_key_and_the_file_wins(folder: Path) -> None:
    path = write(folder, "child.yaml", "base: run.yaml\noptim: {kind: cosine}\ntitle: child\n")
    assert load_mapping(path) == {
        "optim": {"rate": 0.1, "kind": "cosine"},
        "stages": [{"name": "a", "steps": 5}, {"name": "b"}],
        "title": "child",
    }


def test_lists_are_replaced_and_not_joined(folder: Path) -> None:
    path = write(folder, "child.yaml", "base: run.yaml\nstages: [{name: c}]\n")
    assert load_mapping(path)["stages"] == [{"name": "c"}]


def test_null_takes_a_key_of_the_base_away(folder: Path) -> None:
    path = write(folder, "child.yaml", "base: run.yaml\ntitle: null\nstages:\n")
    assert load_mapping(path) == {"optim": {"rate": 0.1}}
    assert load(Run, path).title == "untitled"


def test_a_section_taken_away_in_between_comes_back_without_its_old_keys(folder: Path) -> None:
    write(folder, "middle.yaml", "base: run.yaml\noptim: null\n")
    path = write(folder, "child.yaml", "base: middle.yaml\noptim: {kind: cosine}\n")
    assert load_mapping(path)["optim"] == {"kind": "cosine"}


def test_later_bases_win_over_earlier_ones_and_paths_are_relative_to_the_file(folder: Path) -> None:
    write(folder, "parts/rate.yaml", "optim: {rate: 0.5, kind: cosine}\ntitle: rate\n")
    write(folder, "parts/title.yaml", "base: ../run.yaml\n")
    path = write(folder, "runs/child.yaml", "base: [../parts/title.yaml, ../parts/rate.yaml]\n")
    mapping = load_mapping(path)
    assert (mapping["optim"], mapping["title"]) == ({"rate": 0.5, "kind": "cosine"}, "rate")


def test_what_a_file_sets_otherwise_than_its_bases_is_listed(folder: Path) -> None:
    child = write(folder, "child.yaml", "base: run.yaml\noptim: {rate: 0.1, kind: cosine}\nstages: [{name: a, steps: 7}]\n")
    told = ["extra.name=x", "title=null", "optim.kind=cosine", "stages.0.steps=7", "stages.1.name=null"]
    assert differences(child, ["extra.name=x", "title=null"]) == told
    assert differences(folder / "run.yaml")[:2] == ["optim.rate=0.1", "stages.0.name=a"], "without a base, everything"


def test_two_bases_may_share_a_base(folder: Path) -> None:
    write(folder, "left.yaml", "base: run.yaml\n")
    write(folder, "right.yaml", "base: run.yaml\ntitle: right\n")
    assert load_mapping(write(folder, "child.yaml", "base: [left.yaml, right.yaml]\n"))["title"] == "right"


def test_a_circle_of_bases_is_refused(folder: Path) -> None:
    write(folder, "a.yaml", "base: b.yaml\n")
    path = write(folder, "b.yaml", "base: a.yaml\n")
    assert "break the circle" in refused(load_mapping, path)


@pytest.mark.parametrize("base", ["5", "[run.yaml, 5]", "{run.yaml: 1}"])
def test_a_base_that_is_no_path_is_refused(folder: Path, base: str) -> None:
    message = refused(load_mapping, write(folder, "child.yaml", f"base: {base}\n"))
    assert "must be the path of a YAML file or a list of such paths" in message


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
        (b"a: !!python/object:os.system x\n", "is not valid YAML"),
        (b"? [1, 2]\n: 3\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"", "holds nothing, not a mapping of sections"),
        (b"- a\n- b\n", "holds list"),
        (b"a: 1\nb: 2\na: 3\n", "key 'a' stands twice in one mapping, again at line 3; keep one"),
        (b"s:\n  k: 1\n  k: 2\n", "key 'k' stands twice in one mapping, again at line 3; keep one"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    text = refused(load_mapping, path)
    assert message in text and "bad.yaml" in text


def test_a_missing_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(load_mapping, tmp_path / "none.yaml")
    assert "cannot be read (Is a directory)" in refused(load_mapping, tmp_path)


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")
    assert load_mapping(path)["two"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("1e9", 1e9), ("-3E+2", -300.0), ("2.0e-4", 2e-4)])
def test_scientific_notation_is_a_number_with_and_without_a_point(tmp_path: Path, text: str, value: float) -> None:
    assert load_mapping(write(tmp_path, "a.yaml", f"x: {text}\n"), [f"y={text}"]) == {"x": value, "y": value}


# --- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optin": {}}, "optin: unknown key; did you mean 'optim'?"),
        ({"optim": {"rate": 1, "beta": 2}}, "optim.beta: unknown key; did you mean 'betas'?"),
        ({"stages": [{"name": "a", "stepps": 1}]}, "stages.0.stepps: unknown key; did you mean 'steps'?"),
        ({"suites": {"x": {"nam": "a"}}}, "suites.x.nam: unknown key; did you mean 'name'?"),
        ({"extra": {"qqq": 1, "name": "a"}}, "extra.qqq: unknown key; known: name, note, steps"),
        ({"optim": {}}, "optim.rate: missing; add it"),
        (
            {"optim": {"rate": "fast"}},
            "optim.rate: Input should be a valid number, unable to parse string as a number, got 'fast'",
        ),
        ({"optim": {"rate": 1, "kind": "linear"}}, "optim.kind: Input should be 'wsd' or 'cosine', got 'linear'"),
        ({"title": "x" * 3, "weights": {"a": "y" * 200}}, "got '" + "y" * 76 + "..."),
        ({"stages": [{"name": "a"}, {"name": "b", "steps": 0}]}, "stages.1.steps=0 must be above 0"),
        ({"suites": {"x": {"name": "a", "steps": -1}}}, "suites.x.steps=-1 must be above 0"),
        ({"extra": {"name": "a", "steps": -2}}, "extra.steps=-2 must be above 0"),
        ({"title": "bad"}, "title='bad' is taken; choose another"),
        ({1: 2}, "1: Keys should be strings"),
    ],
)
def test_a_fault_names_setting_value_and_remedy(change: dict[Any, Any], message: str) -> None:
    text = refused(parse, Run, {"optim": {"rate": 1}} | change, "file.yaml")
    assert text.startswith("file.yaml: ") and message in text


def test_all_faults_are_reported_at_once() -> None:
    broken = {"optim": {"kind": "x", "b": 1}, "stages": [{"steps": "many"}], "titel": 1}
    lines = refused(parse, Run, broken, "file.yaml").splitlines()
    assert lines[0] == "file.yaml: 6 faults"
    assert len(lines) == 7
    crossing = {"optim": {"rate": 1}, "title": "bad", "stages": [{"name": "a", "steps": 0}]}
    assert "2 faults" in refused(parse, Run, crossing, "file.yaml")


def test_a_prefix_says_where_the_mapping_stands() -> None:
    assert "run.optim: missing; add it" in refused(parse, Run, {}, "file.yaml", "run")
    assert "run.title='bad'" in refused(parse, Run, {"optim": {"rate": 1}, "title": "bad"}, "file.yaml", "run")


def test_a_fault_of_the_configuration_is_a_fault_of_the_user() -> None:
    assert issubclass(ConfigError, UserError)


def test_near_names_are_preferred_to_all_names() -> None:
    assert nearest("stable-3", ["stable", "stable-2", "decay"]) == "did you mean 'stable-2' or 'stable'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "known: none"


def test_sections_cannot_be_changed_after_they_are_read() -> None:
    stage = Stage(name="a")
    with pytest.raises(ValueError, match="frozen"):
        stage.steps = 2  # type: ignore[misc]


# --- round trip --------------------------------------------------------------------------------------------------------

# Any text without control characters and without the $ of a variable.
TEXTS = st.text(
    st.characters(codec="utf8", exclude_characters="$", exclude_categories=("Cc", "Zl", "Zp")), max_size=12
) | st.sampled_from(
    ["1e9", "-2E-4", "null", "yes", "~", "0x10", "1_000", "12:30", "2020-01-01", "", "- a", "a: b", "#", "'", "two\nlines\n"]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
STAGES = st.builds(Stage, name=TEXTS, steps=st.integers(1, 10**12), note=st.none() | TEXTS)
RUNS = st.builds(
    Run,
    optim=st.builds(Optim, rate=NUMBERS, betas=st.tuples(NUMBERS, NUMBERS)),
    stages=st.lists(STAGES, max_size=3),
    suites=st.dictionaries(TEXTS, STAGES, max_size=2),
    weights=st.dictionaries(TEXTS, NUMBERS, max_size=3),
    extra=st.none() | STAGES,
    title=TEXTS.filter(lambda title: title != "bad"),
)


@settings(max_examples=60)
@given(RUNS)
def test_what_is_written_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Run) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf8")
    assert load(Run, path) == config


def test_the_written_configuration_holds_the_defaults() -> None:
    text = to_yaml(Run(optim=Optim(rate=2e-4)))
    assert "kind: wsd" in text and "title: untitled" in text and "extra" not in text
    assert smol_config.yaml.safe_load(text)["optim"]["rate"] == 2e-4
