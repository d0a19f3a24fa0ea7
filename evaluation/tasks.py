"""From a suite to lm-eval's task objects, each set up as the suite says and checked before a model is loaded.

lm-eval goes on with a warning, or with none, where a task cannot be scored: an answer that is no choice counts as wrong,
`repeats` beyond the first are thrown away, unfinished reasoning is scored as the answer. All three end here.

Imports lm-eval, which takes seconds: only commands that run or show tasks import this file.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import requests
import yaml
from huggingface_hub.errors import HfHubHTTPError
from jinja2 import UndefinedError
from lm_eval.api.filter import Filter
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.filters.selection import TakeFirstFilter
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from evaluation.results import without_reasoning
from evaluation.suite import JUDGED, NAMED_METRICS, Mode, Suite, SuiteTask
from evaluation.task_names import own_tasks
from smol_config import UserError, nearest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNREACHABLE = (
    *(ConnectionError, HfHubHTTPError, datasets.exceptions.DatasetNotFoundError, requests.RequestException),
    *(ImportError, AssertionError, LookupError),
)
"""What comes of data that the Hub, or a server of a task's own, does not give, and of packages that are missing, too old
(lm-eval's AssertionError) or without the data that they load (NLTK's LookupError)."""


class Loaded(NamedTuple):
    """One task of a suite in one mode."""

    asked: SuiteTask
    mode: Mode
    roots: list[Task | Group]
    """What the name stands for: a task, a group, or a tag's tasks."""

    @property
    def tasks(self) -> list[Task]:
        """All tasks below, each once."""
        return [task for root in self.roots for task in (root.get_all_tasks() if isinstance(root, Group) else [root])]


def load_tasks(suite: Suite, asked: Sequence[SuiteTask], hf_dir: Path) -> tuple[list[Loaded], dict[str, str]]:
    """(the tasks in each of their modes, why others cannot be run by name); raises UserError for what the user can mend.

    Cannot be run: data that the Hub does not give, and packages that a task needs. `hf_dir` is for tasks whose questions
    depend on the tokenizer.
    """
    manager = _manager(suite, asked, hf_dir)
    loaded, missing = [], {}
    for one in asked:
        for mode in one.modes:
            try:
                roots = _load(manager, one)
            except UNREACHABLE as error:
                missing[one.label] = " ".join(str(error).split())
                break
            if one.form == "mcf" and any(isinstance(root, Group) for root in roots):
                raise UserError(f"tasks: {one.name} is a group; form: mcf is for a task alone, give those of the group")
            loaded.append(Loaded(one, mode, roots))
            for task in loaded[-1].tasks:
                _set_up(task, one)
            _check_metrics(loaded[-1])
    for (name, mode), count in Counter((task.task_name, one.mode) for one in loaded for task in one.tasks).items():
        if count > 1:
            raise UserError(f"tasks: {name} is asked by {count} entries in mode {mode}, itself or in a group or tag; keep one")
    return loaded, missing


def fetch(suite: Suite, hf_dir: Path | None) -> Iterator[tuple[str, str | None]]:
    """Each task of a suite, of both uses, as soon as its data is in the caches of this machine: (name, None), or why it is not.

    Raises UserError as `load_tasks` does for names and files; whatever goes wrong with one task's data leaves the others alone.
    """
    manager = _manager(suite, suite.tasks, hf_dir)
    for one in {one.name: one for one in suite.tasks}.values():
        try:
            roots = _load(manager, one)
        except (*UNREACHABLE, OSError, UserError) as error:
            yield one.name, " ".join(str(error).split())
            continue
        tasks = Loaded(one, "base", roots).tasks
        lacking = {name for task in tasks for name, code in task._metric_fn_list.items() if code is None and _scores(task)}
        yield one.name, f"no code of the metric {', '.join(sorted(lacking))}" if lacking else None


def _scores(task: Task) -> bool:
    """Whether lm-eval's metrics score it, and not code of its own."""
    return task.config.process_results is None


def _manager(suite: Suite, asked: Sequence[SuiteTask], hf_dir: Path | None) -> TaskManager:
    """Of the suite's folders, and of lm-eval's own tasks if those have not all that is asked for."""
    for folder in suite.folders:
        if not folder.is_dir():
            raise UserError(f"folders: {folder} is no folder; give one that holds lm-eval task files")
        for path in sorted(folder.rglob("*.yaml")):
            try:
                load_yaml(path, resolve_func=False)
            except (yaml.YAMLError, ValueError, OSError) as error:  # lm-eval would leave the file out, and say nothing
                raise UserError(f"{path} is no task file: {' '.join(str(error).split())}") from error
    told = ({"pretrained": str(hf_dir)} if hf_dir else {}) | suite.data
    manager = TaskManager(include_path=list(suite.folders), include_defaults=False, metadata=told)
    index = manager.task_index
    names = [one.name for one in asked]
    for entry in [index[name] for name in names if name in index]:  # of groups in the suite's folders, what they name too
        names += [child for child in (entry.cfg or {}).get("task", ()) if entry.kind is Kind.GROUP and isinstance(child, str)]
    for afresh in (False, True):  # before a name is called unknown, lm-eval's files are read as they are now
        if any(name not in index for name in names):
            index |= own_tasks(afresh) | index  # a task of the suite's folders replaces one of lm-eval's
    if unknown := [name for name in names if name not in index]:
        raise UserError("\n  ".join(f"tasks: {name!r} is none that lm-eval knows; {nearest(name, index)}" for name in unknown))
    return manager


def _load(manager: TaskManager, asked: SuiteTask) -> list[Task | Group]:
    """The objects of a name. Raises UserError for a task file that cannot be used."""
    try:
        found = manager.load(asked.name)
    except UndefinedError as error:
        raise UserError(f"task {asked.name}: {error}; its file names a column that the data does not have") from error
    except FileNotFoundError as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise
        raise UserError(f"task {asked.name}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, datasets.exceptions.DatasetGenerationError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"task {asked.name} cannot be loaded: {type(error).__name__}: {said}") from error
    below = {name for group in found["groups"].values() for name in group.child_names}
    return [item for items in (found["groups"], found["tasks"]) for name, item in items.items() if name not in below]


def _set_up(task: Task, asked: SuiteTask) -> None:
    """Shots, form, sampling and what is scored, as the suite says."""
    task.set_config("num_fewshot", (task.config.num_fewshot or 0) if asked.shots is None else asked.shots)
    if task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", asked.generation, update=True)
        if not (task.config.metadata or {}).get("keep_reasoning"):
            for ensemble in task._filters:
                ensemble.filters.insert(0, ReasoningStripped)
    elif asked.generation or asked.repeats > 1 or asked.judge:
        raise UserError(f"task {task.task_name} generates nothing; take generation, repeats and judge away from it")
    if asked.repeats > 1:
        _average(task, asked.repeats)
    if asked.form and task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"task {task.task_name} is no multiple-choice task; take form: {asked.form} away from it")
    if task.OUTPUT_TYPE == "multiple_choice":
        _check_answers(task)
        if asked.form == "cf" and set(task.doc_to_choice(task.eval_docs[0])) <= set(LETTERS):
            raise UserError(f"task {task.task_name} scores letters; form: cf needs a task whose choices are the answers")
        if asked.form == "mcf":
            _list_answers(task)


# --- what is scored --------------------------------------------------------------------------------------------------------


class ReasoningStripped(Filter):
    """First of a task's filters: answers without the reasoning before them."""

    def apply(self, resps: Any, docs: Any) -> Iterable[list[str]]:
        """Of each question's responses."""
        return [[without_reasoning(response) for response in responses] for responses in resps]


def _average(task: Task, repeats: int) -> None:
    """avg@k: every response is scored as a first one would be; a question's score is their mean."""
    if not task.config.generation_kwargs.get("do_sample"):
        raise UserError(f"task {task.task_name}: repeats: {repeats} without sampling; set generation: {{do_sample: true, ...}}")
    task.set_config("repeats", repeats)
    for ensemble in task._filters:
        ensemble.filters = [step for step in ensemble.filters if not isinstance(step(), TakeFirstFilter)]
    one = task.process_results

    def over_all(doc: Any, results: list[list[str]]) -> dict[str, float]:
        scores = [one(doc, [response]) for response in results[0]]
        return {metric: _pooled([score[metric] for score in scores]) for metric in scores[0]}

    task.process_results = over_all


def _pooled(scores: list[Any]) -> Any:
    """A mean; of lists, as IFEval's of each instruction, one list."""
    return [item for score in scores for item in score] if isinstance(scores[0], list) else sum(scores) / len(scores)


def gold(task: Task, doc: Any) -> Any:
    """The right answer's place among the choices, or several; None where the task's answer is no choice."""
    if task.multiple_input:  # the question is one of several texts, the choices; the target is what follows
        return task.doc_to_text(doc)
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    if isinstance(target, str):
        return choices.index(target) if target in choices else None
    return target if all(0 <= at < len(choices) for at in (target if isinstance(target, list) else [target])) else None


def _check_answers(task: Task) -> None:
    for number, doc in enumerate(task.eval_docs):
        if gold(task, doc) is None:
            raise UserError(
                f"task {task.task_name}: question {number} has the answer {task.doc_to_target(doc)!r}, which is none of its "
                f"choices {task.doc_to_choice(doc)}; doc_to_target names a column with one of them or its place"
            )


def _list_answers(task: Task) -> None:
    """The multiple-choice form of a task in cloze form: the answers listed by letters, one of which is asked for."""
    if task.multiple_input or task.fewshot_cfg.doc_to_choice not in (None, task.config.doc_to_choice):
        raise UserError(f"task {task.task_name} puts its choices into the question; it has no multiple-choice form")
    text, choice, target = task.config.doc_to_text, task.config.doc_to_choice, task.config.doc_to_target

    def question(doc: Any) -> str:
        answers = task.doc_to_choice(doc, choice)
        lines = [f" {letter}. {answer.strip()}" for letter, answer in zip(LETTERS, answers, strict=False)]
        return "\n".join([task.doc_to_text(doc, text), *lines, "Answer:"])

    def place(doc: Any) -> int:
        answer = task.doc_to_target(doc, target)
        return int(task.doc_to_choice(doc, choice).index(answer) if isinstance(answer, str) else answer)

    def letters(doc: Any) -> list[str]:
        return list(LETTERS[: len(task.doc_to_choice(doc, choice))])

    for config in (task.config, task.fewshot_cfg):
        config.doc_to_text, config.doc_to_choice, config.doc_to_target = question, letters, place
        config.target_delimiter = " "
    task.config.task = f"{task.task_name}_mcf"


def _check_metrics(loaded: Loaded) -> None:
    known = {metric for task in loaded.tasks for metric in task.aggregation()}
    if any(task.OUTPUT_TYPE == "multiple_choice" for task in loaded.tasks):
        known |= set(NAMED_METRICS)
    if loaded.asked.judge:
        known.add(JUDGED)
    for metric in loaded.asked.metrics:
        if metric not in known:
            raise UserError(f"tasks: {loaded.asked.name} has no metric {metric!r}; {nearest(metric, known)}")


# --- which questions -------------------------------------------------------------------------------------------------------


def questions_of(loaded: Loaded, seed: int, subset: int | None) -> dict[str, list[int]]:
    """By task, the questions of its subset, in their order, for tasks that have more; the smaller of the two limits counts."""
    limits = [limit for limit in (loaded.asked.subset, subset) if limit is not None]
    chosen = {}
    for task in loaded.tasks:
        there = len(task.eval_docs)
        if limits and min(limits) < there:
            chosen[task.task_name] = sorted(random.Random(f"subset {seed}").sample(range(there), min(limits)))
    return chosen
