"""How far the training behind a model had come, kept beside its weights: checkpoints go, and models travel.

    RUN/iter_N/state.json, RUN/metrics.jsonl --progress_of, write--> HF_DIR/training.json --read--> by-step and by-token curves

Exports of pre-training and of post-training have it. The packages import this file; it imports none.
"""

import json
from pathlib import Path
from typing import NamedTuple

NAME = "training.json"


class Progress(NamedTuple):
    """None is what is not known."""

    step: int | None
    tokens: int | None = None
    """Trained on in all."""
    learning_rate_share: float | None = None
    """Of the highest that the run had up to there: 1 in a stable phase, less once it decays."""


def progress_of(checkpoint: Path) -> Progress:
    """Of a whole checkpoint, RUN/iter_N. Raises OSError, ValueError and KeyError where its state.json is missing or damaged."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf8"))
    return Progress(state["step"], state["tokens"], _learning_rate_share(checkpoint.absolute().parent, state["step"]))


def write(folder: Path, progress: Progress) -> None:
    """Into an export."""
    (folder / NAME).write_text(json.dumps(progress._asdict()) + "\n", encoding="utf8")


def read(folder: Path) -> Progress | None:
    """Of an export; None for a folder without. Raises ValueError for a damaged file."""
    path = folder / NAME
    return Progress(**json.loads(path.read_text(encoding="utf8"))) if path.is_file() else None


def _learning_rate_share(run: Path, step: int) -> float | None:
    """By the newest line of metrics.jsonl that is not after the step; None where none has a learning rate."""
    highest = newest = 0.0
    try:
        with (run / "metrics.jsonl").open(encoding="utf8") as file:
            for line in map(json.loads, file):
                if line["step"] > step:
                    break
                newest = line.get("train/learning_rate", newest)
                highest = max(highest, newest)
    except (OSError, ValueError):  # none there, or a line that is being written
        pass
    return newest / highest if highest else None
