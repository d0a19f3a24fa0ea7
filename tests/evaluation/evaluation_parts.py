"""What several tests of suites share: a small task, the command and what it writes, the fixtures' type."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import REPOSITORY

from evaluation.__main__ import main

OFFLINE = REPOSITORY / "evaluation" / "offline"
Write = Callable[..., Path]

COLOURS = [
    {"question": f"The {thing} is", "choices": ["red", "light blue", "very dark green"], "answer": number % 3}
    for number, thing in enumerate(("sky", "grass", "sea", "rose", "leaf", "sun", "moon", "snow"))
]


def run(model: Path, suite: Path, output: Path, *more: str) -> int:
    return main(["run", str(model), "--suite", str(suite), "--output", str(output), *more])


def record(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "results.json").read_text()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
