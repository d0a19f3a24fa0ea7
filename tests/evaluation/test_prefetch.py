"""`python -m evaluation prefetch`: what a suite needs of the Hub is there when the Hub is gone."""

import json
from pathlib import Path

import pytest
from evaluation_parts import COLOURS, Write, record, run
from hub_double import hub_double

from evaluation.__main__ import main

REMOTE = {"dataset_path": "org/colours", "dataset_kwargs": {}}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of this process; huggingface_hub and datasets read the environment only when they are imported."""
    folder = tmp_path / "home"
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    return folder


def test_a_suite_runs_without_the_hub_after_prefetch(
    plain_model: Path,
    caches: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "hub" / "org" / "colours"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in COLOURS))
    write_task("colours", COLOURS, **REMOTE)
    write_task("absent", COLOURS, **REMOTE | {"dataset_path": "org/absent"})
    write_task("later", COLOURS, **REMOTE)
    tasks = [{"name": "colours"}, {"name": "absent"}, {"name": "later", "use": "report"}]
    suite = write_suite([*tasks, {"name": "colours", "form": "mcf"}])
    with monkeypatch.context() as reach, hub_double(tmp_path / "hub", reach) as hub:
        for setting, value in {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False}.items():
            reach.setattr(f"datasets.config.{setting}", value)
        assert main(["prefetch", "--suite", str(suite)]) == 1
        said = capsys.readouterr()
        assert "colours: there\nabsent: not there: 404 Client Error. Repository Not Found" in said.out
        assert f"later: there\ndatasets: {caches}/datasets\nfiles of the Hub: {caches}/hub\n" in said.out
        assert said.out.endswith(f"on nodes without internet: export HF_HUB_OFFLINE=1 HF_HOME={caches}\n")
        assert "1 of 3 tasks are not there; give the command again, or take them out" in said.err
        assert hub.downloads() == ["test.jsonl"]
        assert run(plain_model, suite, tmp_path / "part") == 1
        assert record(tmp_path / "part")["not_run"].keys() == {"absent"}
        assert main(["prefetch", "--suite", str(suite), "tasks=[{name: colours}]"]) == 0
    assert run(plain_model, write_suite([{"name": "colours"}]), tmp_path / "out") == 0
    assert record(tmp_path / "out")["tasks"]["colours"]["questions"] == len(COLOURS)


def test_what_is_not_there_is_named_and_the_rest_fetched(
    plain_model: Path,
    caches: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task("colours", COLOURS)
    write_task("metric", COLOURS, metric_list=[{"metric": "no_such", "aggregation": "mean", "higher_is_better": True}])
    suite = write_suite([{"name": "metric"}, {"name": "needle"}, {"name": "colours"}], data={"lengths": [128]})
    assert main(["prefetch", "--suite", str(suite)]) == 1
    said = capsys.readouterr().out
    assert "metric: not there: no code of the metric no_such\nneedle: not there: task needle cannot be loaded: " in said
    assert "missing 1 required keyword-only argument: 'pretrained'" in said and "colours: there" in said
    assert main(["prefetch", "--suite", str(suite), "--model", str(plain_model)]) == 1
    assert "needle: there" in capsys.readouterr().out
    assert main(["prefetch", "--suite", str(suite), "folders=[/no/such]"]) == 2
    assert "folders: /no/such is no folder" in capsys.readouterr().err
