"""The suites that ship: SmolLM3's tasks, their published scores and the table of what serves them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluation_parts import record, run
from lm_eval.tasks import TaskManager
from tiny_runs import REPOSITORY

from evaluation.reference import load_reference
from evaluation.results import score_name
from evaluation.suite import load_suite

SUITES = [load_suite(path) for path in sorted((REPOSITORY / "evaluation" / "suites").glob("*.yaml"))]


def test_every_suite_that_ships_finds_its_folders() -> None:
    assert all(folder.is_dir() for suite in SUITES for folder in suite.folders)


@pytest.mark.parametrize("name", ["base", "ruler", "instruct"])
def test_published_scores_have_the_names_of_the_suites_scores(name: str) -> None:
    path = REPOSITORY / "evaluation" / "smollm3" / f"published_{name}.json"
    level = load_reference(f"card={path}").level
    tasks = load_suite(REPOSITORY / "evaluation" / "suites" / f"smollm3_{name}.yaml").tasks
    metrics = {score_name(task.label, mode, ""): task.metrics for task in tasks for mode in task.modes}
    assert level and {f"{score.rpartition('/')[0]}/" for score in level} <= metrics.keys()
    for score, value in level.items():
        start, _, metric = score.rpartition("/")
        assert 0 < value < 1 and metric in (metrics[f"{start}/"] or [metric]), score


def test_the_table_of_engines_has_every_task_of_the_suites() -> None:
    _, _, after = (REPOSITORY / "docs" / "evaluation.md").read_text().partition("| task | transformers | server |\n")
    table, _, _ = after.partition("\n\n")
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table.splitlines()]
    names = [name for row in rows for name in row - {"cf", "mcf"}]
    used = {re.sub(r"(?<=_cf_)[a-z]{2}$", "LANGUAGE", task.name) for suite in SUITES for task in suite.tasks}
    assert sorted(names) == sorted(used)
    lettered = {task.name for suite in SUITES for task in suite.tasks if task.form == "mcf"}
    assert lettered <= {name for row in rows if "mcf" in row for name in row} | {"cloze_docs"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "instruct", "ruler"])
def test_without_the_hub_every_task_of_smollm3s_suites_is_known_and_named(
    name: str, plain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = REPOSITORY / "evaluation" / "suites" / f"smollm3_{name}.yaml"
    for use in sorted({task.use for task in load_suite(path).tasks}):
        assert run(plain_model, path, tmp_path / use, "--use", use) == 1
        made = record(tmp_path / use)
        assert made["not_run"].keys() == {task.label for task in load_suite(path).selected(use)} and not made["results"]
        assert capsys.readouterr().err.count("not run: ") == len(made["not_run"])


ROWS: dict[str, list[dict[str, Any]]] = {
    "belebele_cf": [
        {"flores_passage": "Il pleut. ", "question": " Quoi ?", "correct_answer_num": "3"}
        | {f"mc_answer{number}": f"réponse {number}" for number in (1, 2, 3, 4)}
    ],
    "global_mmlu_ca_cf": [
        {"question": label, "answer": "B", "cultural_sensitivity_label": label}
        | {f"option_{letter}": letter * 2 for letter in "abcd"}
        for label in ("CS", "CA", "-")
    ],
}
"""Of each task, in place of the Hub's."""
WORDS = {
    "fr": "Question : {}\nRéponse :",
    "es": "Pregunta: {}\nRespuesta:",
    "de": "Frage: {}\nAntwort:",
    "it": "Domanda: {}\nRisposta:",
    "pt": "Pergunta: {}\nResposta:",
    "ar": "سؤال: {}\nإجابة:",
    "zh": "问题：{}\n答案：",
    "ru": "Вопрос: {}\nОтвет:",
}


def test_questions_in_eight_languages_are_asked_in_cloze_form_in_the_language_itself(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    shutil.copytree(REPOSITORY / "evaluation" / "smollm3" / "multilingual", folder)
    names = [f"{name}_{language}" for name in ROWS for language in WORDS]
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(names)
    for name, rows in ROWS.items():
        here = tmp_path / f"{name}.jsonl"
        here.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for path in folder.glob(f"{name}_*.yaml"):
            hub = re.compile(r"^dataset_name: .*$", re.MULTILINE)
            text, count = hub.subn(f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {here}}}}}", path.read_text())
            assert count == 1
            path.write_text(text)
    tasks = TaskManager(include_path=[str(folder)], include_defaults=False).load(names)["tasks"]
    for language, words in WORDS.items():
        task = tasks[f"belebele_cf_{language}"]
        [row] = task.test_docs()
        assert task.doc_to_text(row) == "Il pleut.\n" + words.format("Quoi ?")
        assert task.doc_to_choice(row)[task.doc_to_target(row)] == "réponse 3" and len(task.doc_to_choice(row)) == 4
        task = tasks[f"global_mmlu_ca_cf_{language}"]
        [row] = task.test_docs()
        assert task.doc_to_text(row) == words.format("CA")
        assert task.doc_to_choice(row)[task.doc_to_target(row)] == "bb" and len(task.doc_to_choice(row)) == 4
        assert task.config.target_delimiter == ("" if language == "zh" else " ")
