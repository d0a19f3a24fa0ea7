"""What a suite is: the tasks, how each is asked and scored, and which of them may steer decisions. One YAML file a suite.

    suite.yaml --this file--> Suite --tasks.py--> lm-eval's tasks --run.py--> results.json

Nothing about tasks themselves is written here: they are lm-eval's YAML files, its own or those in `folders`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from smol_config import Section, load_mapping, parse

Mode = Literal["base", "chat", "think", "no_think"]
Use = Literal["development", "report"]
NAMED_METRICS = ("acc_norm", "acc_bytes", "acc_tokens", "gold_bits_per_byte")
"""Of every multiple-choice task, beside those that its file lists: results.py."""
JUDGED = "judged"
"""Of every task with a judge."""


class Judge(Section):
    """Another model that scores the answers of a task (judge.py)."""

    url: str
    """Of an endpoint that speaks OpenAI's chat completions, without /chat/completions: http://HOST:8000/v1."""
    model: str
    """Its name there."""
    revision: str
    """Of its weights. No endpoint tells it, and scores of two revisions are not to be compared."""
    prompt: Path
    """A text with {question}, {answer} and, where the judge shall know it, {reference}; relative to the suite's file. The
    format of the verdict is added to it."""
    scale: tuple[NonNegativeInt, PositiveInt] = (1, 10)
    """The lowest and the highest score, which become 0 and 1."""
    max_tokens: PositiveInt = 2048
    """Of a verdict."""
    key: str = "OPENAI_API_KEY"
    """The environment variable with the endpoint's key, if it wants one."""

    def problems(self) -> list[str]:
        """A scale upside down, and a secret that would be written into results."""
        found = []
        if self.scale[0] >= self.scale[1]:
            found.append(f"scale: {list(self.scale)} does not rise; give the lowest score and then the highest")
        if "@" in self.url:
            found.append("url: results.json holds it, and so user and password; set the environment variable that `key` names")
        return found


class SuiteTask(Section):
    """One task, group or tag of lm-eval, and how it is asked."""

    name: str
    """As lm-eval knows it, or as a YAML file in the suite's `folders` names it."""
    use: Use = "development"
    """Whether its scores may steer decisions while a model is made (development) or are kept for the final one (report)."""
    form: Literal["cf", "mcf"] | None = None
    """Of a multiple-choice task. cf: the likelihood of each answer's text (cloze form), for which the task must be written so;
    mcf: the answers are listed and the likelihood of each letter is taken, made here from a task in cloze form, whose name
    gets the ending _mcf. None: as the task is written."""
    modes: tuple[Mode, ...] = Field(default=("base",), min_length=1)
    """base: plain text. The others go through the chat template: as it stands (chat), or with its enable_thinking and a system
    message of /think or /no_think, as SmolLM3 was evaluated."""
    shots: NonNegativeInt | None = None
    """Solved examples before each question; None: as the task is written."""
    repeats: PositiveInt = 1
    """Responses to each question, whose scores are averaged (avg@k); more than one needs sampling."""
    subset: PositiveInt | None = None
    """At most as many questions, drawn by the suite's seed."""
    metrics: tuple[str, ...] = ()
    """Which of the task's metrics are kept, such as acc_norm; empty: all."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """Settings of a generative task that replace its own: max_gen_toks, do_sample, temperature, top_p, until."""
    judge: Judge | None = None
    """Of a generative task: who gives it the metric `judged` beside its own."""

    def problems(self) -> list[str]:
        """A mode given twice."""
        return [f"modes: {mode} is given twice; keep one" for mode in sorted(_twice(self.modes))]

    @property
    def label(self) -> str:
        """The name in results."""
        return f"{self.name}_mcf" if self.form == "mcf" else self.name


class Suite(Section):
    """Tasks that are run together."""

    tasks: tuple[SuiteTask, ...] = Field(min_length=1)
    folders: tuple[Path, ...] = ()
    """Folders with lm-eval task files of our own; relative to the suite's file."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Told to every task that makes its own questions, over what its file says: where the text is, lengths, depths."""
    system: str | None = None
    """A system message for all modes but base, after the mode's flag."""
    seed: NonNegativeInt = 0
    """Of subsets, few-shot examples and sampled responses."""
    batch_size: PositiveInt = 16
    """Sequences in a forward pass; scores do not depend on it but for rounding."""
    max_length: PositiveInt | None = None
    """Tokens of the longest input; None: as the model's configuration says."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; auto: as they are on disk."""

    def problems(self) -> list[str]:
        """A task that two entries run in the same way."""
        runs = [(task.label, mode) for task in self.tasks for mode in task.modes]
        return [f"tasks: {label} is given twice in mode {mode}; keep one" for label, mode in sorted(_twice(runs))]

    def selected(self, use: Use) -> list[SuiteTask]:
        """The tasks of one use."""
        return [task for task in self.tasks if task.use == use]


def load_suite(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """The suite of a file, its paths made absolute; raises ConfigError listing every fault."""
    suite = parse(Suite, load_mapping(path, overrides), source=str(path))
    folders = tuple((path.parent / folder).resolve() for folder in suite.folders)
    return suite.model_copy(update={"folders": folders, "tasks": tuple(_placed(task, path.parent) for task in suite.tasks)})


def _placed(task: SuiteTask, folder: Path) -> SuiteTask:
    if task.judge is None:
        return task
    judge = task.judge.model_copy(update={"prompt": (folder / task.judge.prompt).resolve()})
    return task.model_copy(update={"judge": judge})


def _twice(items: Any) -> list[Any]:
    return [item for item, count in Counter(items).items() if count > 1]
