"""What a training run's folder says of it: how it ended, what it reached, what it cost. Plain files, no second book-keeping.

metrics.jsonl            losses, throughput, held-out losses       alerts.jsonl    started, stopped, crashed, done
iter_N/COMPLETE          a whole checkpoint                        train.log       what the trainer printed
hf/step_N                its export                                scores/         what a suite came to (evaluation/results.py)
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from evaluation.ablations.kinds import PRETRAINING, Kind

State = Literal["done", "diverged", "stopped", "failed", "waiting"]
"""failed and waiting runs are tried again by the next call; the others are as they will be."""

LAST, FIRST = 20, 20
"""Steps whose mean is the final loss, whose highest is the loss at the start: single losses jump with what is in a batch."""
WARM_UP = 5
"""Steps whose speed does not count."""
COURSE = ("started", "resumed", "stopped", "crashed", "diverged", "done")
LOG_NAME = "train.log"


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    state: State
    reason: str = ""
    """Why it is not done, in a few words."""
    numbers: dict[str, float] = field(default_factory=dict)
    """loss, loss_at_start: nats; tokens; tokens_per_second, devices, device_hours: of its training steps; gpu_hours: the same,
    where the devices were GPUs. As far as there are steps."""
    scores: dict[str, float] = field(default_factory=dict)
    """What the trainer found on held-out data, and the suite's scores, by name."""


def outcome(folder: Path, steps: int | None, kind: Kind = PRETRAINING) -> Outcome:
    """Of the run in `folder`, which is to train `steps` steps; None: only the run itself knows, and tells when it is done."""
    lines = read_lines(folder / "metrics.jsonl")
    numbers = _numbers([line for line in lines if "train/loss" in line])
    state, reason = _ended(folder, steps)
    if kind.loss_falls and (why := _divergence(lines, numbers)):
        return Outcome("waiting" if state == "waiting" else "diverged", why, numbers)
    return Outcome(state, reason, numbers, _scores(folder, lines, kind) if state == "done" else {})


def last_step(folder: Path, steps: int | None) -> int:
    """Of a run that is done."""
    return newest_checkpoint(folder) if steps is None else steps


def final_checkpoint(folder: Path, steps: int) -> Path:
    """Where the trainer leaves the last one."""
    return folder / f"iter_{steps:07d}"


def newest_checkpoint(folder: Path) -> int:
    """Step of the newest whole one; -1: none."""
    names = [path.parent.name.removeprefix("iter_") for path in folder.glob("iter_*/COMPLETE")]
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def tokens_trained(folder: Path) -> int:
    """So far, from the end of metrics.jsonl, which may be long."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, 2) - 2**16, 0))
            found = re.findall(rb'"tokens": (\d+)', file.read())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without one that is just being written; none where there is no file."""
    try:
        text = path.read_text(encoding="utf8")
    except FileNotFoundError:
        return []
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def losses(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Training losses by line; NaN where the trainer wrote null."""
    return [math.nan if line["train/loss"] is None else line["train/loss"] for line in lines if "train/loss" in line]


def _numbers(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """From the lines that have a loss."""
    if not lines:
        return {}
    found = [loss for loss in losses(lines) if math.isfinite(loss)]
    timed = lines[WARM_UP:] or lines
    speed = median(line["perf/tokens_per_second"] for line in timed)
    devices = round(speed / median(line["perf/tokens_per_second_per_device"] for line in timed))
    step_tokens = lines[-1]["tokens"] - lines[-2]["tokens"] if len(lines) > 1 else lines[-1]["tokens"]
    tokens = lines[-1]["tokens"] - lines[0]["tokens"] + step_tokens  # of an annealed run: its own
    hours = tokens / speed * devices / 3600
    numbers = {
        "tokens": tokens,
        "tokens_per_second": speed,
        "devices": devices,
        "device_hours": hours,
    }
    if found:
        numbers |= {"loss": sum(found[-LAST:]) / len(found[-LAST:]), "loss_at_start": max(found[:FIRST])}
    if any(name.startswith("device/") for name in lines[-1]):
        numbers["gpu_hours"] = hours
    return numbers


def _divergence(lines: Sequence[dict[str, Any]], numbers: dict[str, float]) -> str:
    """Why it has diverged, or nothing. The final loss must be a number, and not above the highest of the first steps."""
    found = losses(lines)
    if not found:
        return ""
    if math.isnan(found[-1]):
        return f"the loss of step {lines[-1]['step']:,} is not a number"
    if len(found) > FIRST and numbers["loss"] > numbers["loss_at_start"]:
        return f"the loss ended at {numbers['loss']:.3f}, above {numbers['loss_at_start']:.3f} at the start"
    return ""


def _ended(folder: Path, steps: int | None) -> tuple[State, str]:
    if steps is not None and (final_checkpoint(folder, steps) / "COMPLETE").is_file():
        return "done", ""
    alerts = read_lines(folder / "alerts.jsonl")
    course = [alert for alert in alerts if alert["event"] in COURSE]
    last = course[-1] if course else {"event": "", "text": ""}
    if last["event"] == "done" and steps is None:
        return "done", ""
    if last["event"] == "diverged":
        return "diverged", last["text"]
    if last["event"] == "stopped" and last["text"].endswith("exit code 93"):
        if any(alert["event"] == "rollback" for alert in alerts):
            return "diverged", f"the trainer gave up after loss spikes, {last['text']}"
        return "stopped", last["text"]
    if last["event"] == "crashed":
        return "failed", last["text"]
    if not course and (folder / LOG_NAME).is_file():
        return "failed", last_line(folder / LOG_NAME)
    reached = newest_checkpoint(folder)
    return "waiting", f"to go on from step {reached:,}" if reached >= 0 else "not trained yet"


def last_line(log: Path) -> str:
    """What a log says of a failure: its last line that begins with error, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines or [f"{log} is empty"])[-1]


def _scores(folder: Path, lines: Sequence[dict[str, Any]], kind: Kind) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in lines:
        found |= {name: value for name, value in line.items() if kind.scores(name) and value is not None}
    results = folder / "scores" / "results.json"
    suite = json.loads(results.read_text(encoding="utf8"))["results"] if results.is_file() else {}
    return found | suite
