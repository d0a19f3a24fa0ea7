"""The catalogue: strict, every fault named; rules keep and drop documents; SmolLM3's is complete and says what is not known."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.catalogue import CatalogueEntry, Rule, find_catalogue, load_catalogue
from data_tools.run_config import load_data_run
from smol_config import ConfigError

SMOLLM3 = Path(__file__).parents[2] / "configs" / "smollm3"
RUNS = ("pretrain.yaml", "long_32k.yaml", "long_64k.yaml")


def load(tmp_path: Path, **entries: Any) -> Any:
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump({"datasets": entries}), encoding="utf8")
    return load_catalogue(path)


def test_an_entry_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    web = {"group": "English web", "repository": "a/b", "text_key": "text", "files": ["*.parquet"], "also": ["web-2"]}
    catalogue = load(tmp_path, web=web)
    assert catalogue.entry("web") is catalogue.entry("web-2")
    assert (catalogue.main_name("web-2"), catalogue.main_name("other"), catalogue.get("other")) == ("web", None, None)
    assert catalogue.entry("web").can_be_prepared
    with pytest.raises(ConfigError, match=r"dataset 'wep' is not in the catalogue; did you mean 'web"):
        catalogue.entry("wep")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"group": "poetry"},
            "datasets.web.group: Input should be 'English web', 'multilingual', 'code', 'math' or 'reasoning'",
        ),
        ({"license": "x"}, "datasets.web.license: unknown key; did you mean 'licence'?"),
        ({"repository": None}, "datasets.web.published=true without a repository; name it or set published=false"),
        ({"text_key": None}, "datasets.web.text_key=null without a note; say how the text is assembled"),
        ({"published": False}, "datasets.web.published=false without a note; say what is known"),
        ({"filter": [{"column": "language"}]}, "column 'language' has []; give one of equals, at_least, one_of"),
        ({"filter": [{"column": "n", "equals": 1, "at_least": 2}]}, "column 'n' has ['equals', 'at_least']; give one of"),
        ({"also": ["web"]}, "datasets: ['web'] stand more than once, counting the names under also; keep one each"),
        ({"tokens": 0}, "datasets.web.tokens: Input should be greater than 0"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    web = {"group": "English web", "repository": "a/b", "text_key": "text"} | change
    with pytest.raises(ConfigError) as fault:
        load(tmp_path, web=web)
    assert sentence in str(fault.value)


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ({"equals": "Python"}, ["Python"], ["python", None, 3]),
        ({"equals": True}, [True], [False, None]),
        ({"at_least": 3}, [3, 3.5, 10], [2.99, None, "4"]),
        ({"one_of": ["en", "fr"]}, ["en", "fr"], ["de", None, ""]),
    ],
)
def test_a_rule_keeps_what_it_says(rule: dict[str, Any], kept: list[Any], dropped: list[Any]) -> None:
    found = Rule.model_validate({"column": "c", **rule})
    assert [value for value in (*kept, *dropped) if found.holds({"c": value, "d": 0})] == kept
    assert not found.holds({"d": "Python"})


def test_all_rules_of_a_filter_must_hold() -> None:
    rules = [Rule(column="score", at_least=3), Rule(column="language", equals="en")]
    entry = CatalogueEntry(group="code", repository="a/b", text_key="text", filter=rules)
    documents = [{"score": 3, "language": "en"}, {"score": 2, "language": "en"}, {"score": 3, "language": "fr"}, {}]
    assert list(map(entry.keeps, documents)) == [True, False, False, False]


def test_the_catalogue_beside_a_configuration_is_found(tmp_path: Path) -> None:
    assert find_catalogue(SMOLLM3 / "pretrain.yaml") == SMOLLM3 / "catalogue.yaml"
    assert find_catalogue(tmp_path / "run.yaml") is None


def test_smollm3s_catalogue_has_every_dataset_of_its_runs_and_no_other() -> None:
    catalogue = load_catalogue(SMOLLM3 / "catalogue.yaml")
    used: set[str] = set()
    for name in RUNS:
        for stage in load_data_run(SMOLLM3 / name, keep_unset=True).data.stages:
            used |= {catalogue.main_name(dataset) or dataset for dataset in stage.weights}
    assert used == set(catalogue.datasets)


def test_smollm3s_catalogue_cites_its_facts_and_says_what_is_not_known() -> None:
    catalogue = load_catalogue(SMOLLM3 / "catalogue.yaml")
    for name, entry in catalogue.datasets.items():
        assert entry.source, name
        if entry.published:
            assert entry.repository is not None
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository), name
            assert re.fullmatch(r"main|[0-9a-f]{7,40}", entry.revision), name
            assert entry.can_be_prepared or entry.note, name
        else:
            assert not entry.repository, name
    private = {name for name, entry in catalogue.datasets.items() if not entry.published}
    assert {"Wiki_MCQ_final_14M", "code_sft_tulu_nemotron_180k"} < private
    assert len([name for name in private if name.startswith("reasoning_")]) == 4
    assert sum(entry.can_be_prepared for entry in catalogue.datasets.values()) == 36


def test_names_of_one_dataset_share_a_folder_in_smollm3s_runs() -> None:
    catalogue = load_catalogue(SMOLLM3 / "catalogue.yaml")
    folders: dict[str, str] = {}
    for name in RUNS:
        for dataset, folder in load_data_run(SMOLLM3 / name, keep_unset=True).data.datasets.items():
            main = catalogue.main_name(dataset)
            assert main is not None
            if dataset != "stack-edu-HTML":  # kept as published: the 4k run reads it beside stack-v2-HTML
                assert folders.setdefault(main, folder) == folder, dataset
