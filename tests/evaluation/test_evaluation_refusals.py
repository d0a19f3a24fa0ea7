"""What `python -m evaluation run` refuses, in one sentence and with nothing written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluation_parts import COLOURS, Write, run

Change = dict[str, Any]


@pytest.mark.parametrize(
    ("entry", "task", "sentence"),
    [
        ({"metrics": ["ack"]}, {}, "tasks: colours has no metric 'ack'; did you mean 'acc'?"),
        ({"repeats": 2}, {}, "task colours generates nothing; take generation, repeats and judge away from it"),
        ({}, {"doc_to_target": "solution"}, "question 0 has the answer 'solution', which is none of its choices ['red',"),
        ({}, {"doc_to_target": "{{solution}}"}, "task colours: 'solution' is undefined; its file names a column"),
        ({}, {"output_type": "multiple_choices"}, "task colours cannot be loaded: ValueError: Got invalid output_type"),
        ({}, {"dataset_kwargs": {"data_files": {"test": "no/such.jsonl"}}}, "task colours: Unable to find"),
        ({"form": "cf"}, {"doc_to_choice": ["A", "B", "C"]}, "task colours scores letters; form: cf needs a task whose"),
        (
            {"form": "mcf"},
            {"doc_to_text": "{{answer}}", "doc_to_target": "{{question}}"},
            "task colours puts its choices into the question; it has no multiple-choice form",
        ),
        (
            {"form": "mcf"},
            {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "x"},
            "task colours is no multiple-choice task; take form: mcf away from it",
        ),
        (
            {"repeats": 4},
            {"output_type": "generate_until", "doc_to_choice": None, "metric_list": None, "generation_kwargs": {"until": []}},
            "task colours: repeats: 4 without sampling; set generation: {do_sample: true, ...}",
        ),
        (
            {"modes": ["think"]},
            {},
            "has no chat template for colours (think); take these out of the suite",
        ),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused_before_a_model_is_loaded(
    entry: Change,
    task: Change,
    sentence: str,
    plain_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluation.run.LocalModel", lambda *_: pytest.fail("a model was loaded"))
    write_task("colours", COLOURS, **task)
    assert run(plain_model, write_suite([{"name": "colours", **entry}]), tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_bad_input_is_one_sentence_and_nothing_is_written(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task("colours", COLOURS)
    suite = write_suite([{"name": "colours"}])

    def refused(sentence: str, model: Path = plain_model, suite: Path = suite, *more: str) -> None:
        assert run(model, suite, tmp_path / "out", *more) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()

    refused(f"{tmp_path} has no config.json; give a Hugging Face folder", tmp_path)
    failed = tmp_path / "failed"
    shutil.copytree(plain_model, failed)
    (failed / "parity.json").write_text('{"passed": false}')
    refused(f"{failed}: parity.json says that it is not its checkpoint; export it again", failed)
    (failed / "parity.json").unlink()
    (failed / "training.json").write_text('{"steps": 5}')
    refused(f"{failed / 'training.json'} is damaged (", failed)
    (tmp_path / "tasks" / "broken.yaml").write_text("task: [unclosed")
    refused(f"{tmp_path / 'tasks' / 'broken.yaml'} is no task file: while parsing a flow sequence")
    (tmp_path / "tasks" / "broken.yaml").unlink()
    refused("folders: /no/such is no folder; give one that holds", plain_model, suite, "folders=[/no/such]")
    refused("tasks.0.form: Input should be 'cf' or 'mcf', got 'x'", plain_model, suite, "tasks.0.form=x")
    refused("modes: base is given twice; keep one", plain_model, suite, "tasks.0.modes=[base, base]")
    refused("tasks: colours is given twice in mode base", plain_model, write_suite([{"name": "colours"}] * 2))
    refused("data.lengths: 10 tokens have no room", plain_model, write_suite([{"name": "needle"}], data={"lengths": [10]}))
    (tmp_path / "there").mkdir()
    assert run(plain_model, suite, tmp_path / "there") == 2
    assert f"--output {tmp_path / 'there'} is there already; give a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(plain_model, suite, tmp_path / "out", "--subsets=3")
    assert "unrecognized arguments: --subsets=3" in capsys.readouterr().err
