"""Following instructions whose outcome code can verify, after IFEval (Zhou et al. 2023), on prompts made here.

Each prompt asks for a few sentences on a subject under one to three constraints of different kinds. `score` reads the answer,
from which the reasoning has been taken before: `followed`, share of the constraints that are met, and `all_followed`. The
loose way of IFEval, which forgives a first line or asterisks, is left out: what was asked for is what counts.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any


def _words(text: str) -> list[str]:
    return text.split(", ")


SUBJECTS = _words(
    "the sea, a train journey, bread, the moon, a small town, winter, libraries, bicycles, rivers, honey bees, "
    "chess, mountains, old maps, tea, clocks, gardens, bridges, paper, the violin, markets"
)
KEYWORDS = _words("water, morning, silver, careful, people, winter, quiet, letter")
ENDINGS = ("That is all.", "Is there anything else?", "Thank you for reading.")


def questions(*, questions: int, seed: int, **_others: Any) -> dict[str, Any]:
    """Rows {"prompt", "constraints"}: constraints as JSON, a list of [kind, value]."""
    from datasets import Dataset

    draw = random.Random(f"instructions {seed}")
    rows = []
    for number in range(questions):
        kinds = draw.sample(sorted(KINDS), 1 + number % 3)
        constraints = [[kind, draw.choice(KINDS[kind].values)] for kind in kinds]
        asked = " ".join(KINDS[kind].asks.format(value=value) for kind, value in constraints)
        rows.append({"prompt": f"Write about {draw.choice(SUBJECTS)}. {asked}", "constraints": json.dumps(constraints)})
    return {"test": Dataset.from_list(rows)}


def score(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """An empty answer follows nothing: "no commas" is not met by silence."""
    answer = answers[0].strip()
    met = [bool(answer) and KINDS[kind].holds(answer, value) for kind, value in json.loads(row["constraints"])]
    return {"followed": sum(met) / len(met), "all_followed": float(all(met))}


class _Kind:
    """A kind of constraint: how it is asked for, whether an answer meets it, and for which values."""

    def __init__(self, asks: str, holds: Callable[[str, Any], bool], *values: Any) -> None:
        self.asks, self.holds, self.values = asks, holds, values


KINDS = {
    "at_most": _Kind("Use at most {value} words.", lambda answer, value: len(answer.split()) <= value, 20, 40, 80),
    "at_least": _Kind("Use at least {value} words.", lambda answer, value: len(answer.split()) >= value, 10, 15, 18),
    "keyword": _Kind(
        'Use the word "{value}".', lambda answer, value: bool(re.search(rf"\b{value}\b", answer, re.IGNORECASE)), *KEYWORDS
    ),
    "no_commas": _Kind("Use no commas.", lambda answer, _: "," not in answer, True),
    "lowercase": _Kind("Write in lowercase letters only.", lambda answer, _: answer == answer.lower(), True),
    "sentences": _Kind(
        "Write exactly {value} sentences.", lambda answer, value: len(re.findall(r"[.!?](?:\s|$)", answer)) == value, 2, 3, 4
    ),
    "bullets": _Kind(
        'Give exactly {value} bullet points, each on a line that begins with "- ".',
        lambda answer, value: len(re.findall(r"^- \S", answer, re.MULTILINE)) == value,
        *(2, 3, 4),
    ),
    "title": _Kind(
        "Give a title in double angle brackets, such as <<a title>>.",
        lambda answer, _: bool(re.search(r"<<[^<>\n]+>>", answer)),
        True,
    ),
    "ending": _Kind('End with the words "{value}"', lambda answer, value: answer.endswith(value), *ENDINGS),
}
