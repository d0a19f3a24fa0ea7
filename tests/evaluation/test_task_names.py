"""lm-eval's own tasks by name: its files are read once a version, and again before a name is called unknown."""

from pathlib import Path

import pytest
from evaluation_parts import COLOURS, Write, record, run
from lm_eval.tasks import TaskManager

from evaluation import task_names


@pytest.fixture
def reads(tmp_path: Path, write_task: Write, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """lm-eval with one task in a folder of its own, and an empty cache; an item each time that the folder is read."""
    theirs, read = tmp_path / "theirs", list[int]()
    write_task("colours", COLOURS, tag="seen")
    (tmp_path / "tasks").rename(theirs)
    (theirs / "colours.yaml").write_text((theirs / "colours.yaml").read_text().replace("/tasks/", "/theirs/"))
    (theirs / "group.yaml").write_text("group: all_colours\ntask: [colours]\naggregate_metric_list: [{metric: acc}]\n")

    def manager() -> TaskManager:
        read.append(len(read))
        return TaskManager(include_path=str(theirs), include_defaults=False)

    monkeypatch.setattr(task_names, "TaskManager", manager)
    monkeypatch.setattr(task_names, "FOLDER", theirs)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return read


def test_files_are_read_once_and_again_for_a_name_that_is_not_among_them(
    plain_model: Path, tmp_path: Path, write_suite: Write, reads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, kept = task_names.own_tasks(), task_names.own_tasks()
    assert reads == [0] and kept.keys() == {"colours", "all_colours", "seen"}
    for name, entry in kept.items():
        assert (entry.kind, entry.yaml_path, entry.tags) == (first[name].kind, first[name].yaml_path, first[name].tags)
    for name, score in (("colours", "colours"), ("all_colours", "all_colours"), ("seen", "colours")):
        assert run(plain_model, write_suite([{"name": name}, {"name": "sums", "subset": 2}]), tmp_path / name) == 0
        assert f"eval/{score}/acc" in record(tmp_path / name)["results"]
    assert reads == [0]
    assert run(plain_model, write_suite([{"name": "colour"}]), tmp_path / "out") == 2
    assert "tasks: 'colour' is none that lm-eval knows; did you mean 'colours'" in capsys.readouterr().err
    assert reads == [0, 1]
    (tmp_path / "theirs" / "more.yaml").write_text("include: colours.yaml\ntask: more\n")
    assert run(plain_model, write_suite([{"name": "more"}]), tmp_path / "more") == 0
    assert "more" in task_names.own_tasks() and reads == [0, 1, 2]


def test_a_task_of_the_suites_folders_replaces_one_of_lm_evals(
    plain_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    reads: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task("colours", COLOURS[:2])
    assert run(plain_model, write_suite([{"name": "all_colours"}]), tmp_path / "out") == 0
    assert record(tmp_path / "out")["tasks"]["colours"]["of"] == 2
    assert run(plain_model, write_suite([{"name": "colours"}, {"name": "all_colours"}]), tmp_path / "twice") == 2
    assert "tasks: colours is asked by 2 entries in mode base, itself or in a group or tag; keep" in capsys.readouterr().err


def test_a_group_of_the_suites_folders_may_name_lm_evals_own_tasks(
    plain_model: Path, tmp_path: Path, write_suite: Write, reads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As RULER's, whose group at lm-eval means one length alone."""
    suite = write_suite([{"name": "ours"}])
    group = tmp_path / "tasks" / "group.yaml"
    group.write_text("group: ours\ntask: [colours]\naggregate_metric_list: [{metric: acc}]\n")
    assert run(plain_model, suite, tmp_path / "out") == 0
    assert "eval/ours/acc" in record(tmp_path / "out")["results"]
    group.write_text("group: ours\ntask: [colour]\n")
    assert run(plain_model, suite, tmp_path / "wrong") == 2
    assert "tasks: 'colour' is none that lm-eval knows; did you mean 'colours'" in capsys.readouterr().err


def test_a_cache_that_is_broken_or_cannot_be_written_costs_time_alone(reads: list[int], tmp_path: Path) -> None:
    task_names.own_tasks()
    [cache] = (tmp_path / "assets").rglob("tasks.json")
    cache.write_text('{"colours": ["TA')
    assert "colours" in task_names.own_tasks() and reads == [0, 1]
    assert "colours" in task_names.own_tasks() and reads == [0, 1], "it was mended"
    cache.unlink()
    cache.mkdir()  # a rename onto it fails
    assert "colours" in task_names.own_tasks() and reads == [0, 1, 2]
