"""Questions of `python -m post_training drills`, asked in each mode: form, mode and answer of the whole response.

`data.questions` of the suite names the file, held_out.jsonl of the drills' folder.
"""

import json
import re
from pathlib import Path
from typing import Any

from datasets import Dataset


def questions(*, questions: str, mode: str, **_others: Any) -> dict[str, Any]:
    """Rows {"question", "answer", "mode"}. Raises FileNotFoundError where the file is not there."""
    rows = [json.loads(line) for line in Path(questions).read_text(encoding="utf8").splitlines()]
    return {"test": Dataset.from_list([row | {"mode": mode} for row in rows])}


def score(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """form: a thought, if there is one, is closed once, and "The answer is N." ends what follows. mode: it thinks if and only
    if it is to, and does not think aloud. right: what it says last is the answer. reward: all three, which is what `grpo`
    rewards most."""
    before, begun, inside = responses[0].partition("<think>")
    thought, ended, answer = inside.partition("</think>") if begun else ("", "", before)
    form = bool(ended or not begun) and not (begun and before.strip()) and "think>" not in answer
    form = form and bool(re.search(r"The answer is \d+\.$", answer.strip()))
    said = answer.partition("The answer is ")
    mode = bool(re.search(r"\w", thought)) == (row["mode"] == "think") and not said[0].strip()
    right = said[2].strip() == f"{row['answer']}."
    found = {"form": form, "mode": mode, "right": right, "reward": form and mode and right}
    return {name: float(value) for name, value in found.items()}
