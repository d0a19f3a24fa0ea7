"""Numbers of a step into a TensorBoard folder of their own, each once, by a process that may be killed and started again.

The trainer's own folder is not touched: TensorBoard reads a folder's event files one after another and never goes back to
an older one, so a second writer there would hide the trainer's from it. A folder below it, RUN/tensorboard/evaluations, is
a run of its own to TensorBoard, drawn into the same charts.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Point = tuple[int, str, float]
"""Step, name, value in fp32, as an event file holds it."""

AXES = {"step": "evaluations", "tokens": "evaluations_by_tokens"}
"""Where the scores of results.json lie along an axis, below RUN/tensorboard."""


def add_records(tensorboard: Path, records: Sequence[Mapping[str, Any]], below: str = "") -> None:
    """The finite scores of each results.json at its step and at its tokens, where it knows them; `below`, if given, is a folder
    in each axis's, and so a run of its own."""
    for axis, folder in AXES.items():
        add_missing(
            tensorboard / folder / below,
            {
                record[axis]: {name: value for name, value in record["results"].items() if math.isfinite(value)}
                for record in records
                if record[axis] is not None
            },
        )


def add_missing(folder: Path, results: Mapping[int, Mapping[str, float]]) -> int:
    """Write what is not there yet of each step's numbers, in the order of steps, into one new event file; returns how many."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    there = written(folder)
    missing = [point for step in sorted(results) for point in _points(step, results[step]) if point not in there]
    if not missing:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for step, name, value in missing:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
    return len(missing)


def written(folder: Path) -> set[Point]:
    """All points of a folder's event files. What a kill cut off in the middle is not one."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = (
        event for path in sorted(folder.glob("events.out.tfevents.*")) for event in LegacyEventFileLoader(str(path)).Load()
    )
    return {(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value}


def _points(step: int, numbers: Mapping[str, float]) -> list[Point]:
    return [(step, name, float(np.float32(value))) for name, value in sorted(numbers.items())]
