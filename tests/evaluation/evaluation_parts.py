"""What several tests of suites share: a small task, the command and what it writes, the fixtures' type."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_runs import REPOSITORY

from evaluation.__main__ import main

OFFLINE = REPOSITORY / "evaluation" / "offline"
Write = Callable[..., Path]
NAME = "eval/task/acc"

COLOURS: list[dict[str, Any]] = [
    {"question": f"The {thing} is", "choices": ["red", "light blue", "very dark green"], "answer": number % 3}
    for number, thing in enumerate(("sky", "grass", "sea", "rose", "leaf", "sun", "moon", "snow"))
]


def run(model: Path, suite: Path, output: Path, *more: str) -> int:
    return main(["run", str(model), "--suite", str(suite), "--output", str(output), *more])


def record(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "results.json").read_text()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(folder: Path, step: int | None, values: dict[str, float], right: list[float] | None = None, **more: Any) -> Path:
    """A folder of `run`; `right` is what each question scored, `more` of its record."""
    record: dict[str, Any] = {
        "step": step,
        "results": values,
        "intervals": {name: [value - 0.02, value + 0.02] for name, value in values.items()},
        "chance": {NAME: 0.25},
        "higher_is_better": {NAME: True, "eval/task/bits": False},
        "statistics": {NAME: "mean", "eval/task/bits": "bits"},
        "tasks": {"task": {"prompts_sha256": "words"}},
        "versions": {"lm_eval": "0.4.13"},
        **more,
    }
    path = folder / f"step_{step}"
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(record))
    if right is not None:
        write_samples(path, [{"acc": value} for value in right])
    return path


def write_samples(folder: Path, scores: Sequence[Mapping[str, Any]], task: str = "task") -> None:
    """What each question of a task scored."""
    rows = [{"question": n, "question_sha256": f"row {n}", "filter": "none", "scores": each} for n, each in enumerate(scores)]
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
