"""What an exporter finds on disk when it starts again: RUN/hf, where a run's exports are made by one exporter at a time.

    RUN/hf/step_40000            exported and verified; read-only from then on
    RUN/hf/step_40000.partial    being exported; or failed, with the reason in its parity.json; or left by a kill
    RUN/hf/export.jsonl          a line for each event: exporting, exported, failed, pushed
    RUN/hf/export.lock           held by the exporter (watching.py)

A folder's name says that it is an export; the records say of which checkpoint, since a run that rolled back saves steps anew.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from conversion.watching import append_line, read_lines
from smol_train.checkpoint_folder import read_state, step_of, whole_checkpoints

RECORDS_NAME = "export.jsonl"
LOCK_NAME = "export.lock"

UNKNOWN = ""
"""Stands for the digest where a folder was not made by an exporter."""
Event = Literal["exporting", "exported", "failed", "pushed"]


# --- names -----------------------------------------------------------------------------------------------------------------


def export_name(step: int) -> str:
    """The name of a step's export, such as step_40000."""
    return f"step_{step}"


def step_of_export(folder: Path) -> int:
    """The step of step_N, or of step_N.partial; -1 for other names."""
    match = re.fullmatch(r"step_(\d+)(\..*)?", folder.name)
    return int(match[1]) if match else -1


def revision_of(checkpoint: Path) -> str:
    """The branch of a checkpoint's export: its stage and step, such as stable-step-40000; without a stage step-40000."""
    state = read_state(checkpoint)
    history = state.data.get("history")
    stage = re.sub(r"[^A-Za-z0-9._-]+", "-", history[-1]["stage"]).strip("-.") if history else ""
    return f"{stage}-step-{state.step}" if stage else f"step-{state.step}"


# --- records ---------------------------------------------------------------------------------------------------------------


@dataclass
class Export:
    """What the records say of one step."""

    checkpoint: str
    """Digest of the checkpoint, or UNKNOWN."""
    revision: str
    """Branch to push it to."""
    failed: str | None = None
    """Why it was not exported."""
    error: str | None = None
    """Name of the error's class."""
    pushed: set[str] = field(default_factory=set)
    """Targets."""


class Records:
    """RUN/hf/export.jsonl, read once and appended to; for whoever holds the lock."""

    def __init__(self, hf: Path) -> None:
        self._path = hf / RECORDS_NAME
        self.exports: dict[int, Export] = {}
        """By step, what holds of its latest checkpoint."""
        for line in read_lines(self._path):
            self._take(line)

    def add(self, event: Event, step: int, **details: Any) -> None:
        """Append a line, on the disk when this returns; raises ConversionError when it cannot be written."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "step": step, **details}
        append_line(self._path, line)
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        step = line["step"]
        match line["event"]:
            case "exporting":
                self.exports[step] = Export(line["checkpoint"], line["revision"])
            case "failed":
                self.exports[step] = Export(line["checkpoint"], "", line["reason"], line["error"])
            case "pushed":
                self.exports.setdefault(step, Export(UNKNOWN, line["revision"])).pushed.add(line["target"])

    def forget_failures(self) -> None:
        """Have what failed tried again."""
        self.exports = {step: export for step, export in self.exports.items() if export.failed is None}


# --- for those who work on exports -----------------------------------------------------------------------------------------


def exported(run: Path) -> dict[int, str]:
    """Step -> digest of the checkpoint (or UNKNOWN) of every whole export of a run, oldest first. Recipes of post-training make
    theirs without an exporter."""
    exports, found = Records(run / "hf").exports, {}
    for folder in sorted((run / "hf").glob("step_*"), key=step_of_export):
        step = step_of_export(folder)
        export = exports.get(step)
        if folder.name == export_name(step) and not (export and export.failed):
            found[step] = export.checkpoint if export else UNKNOWN
    return found


def to_be_exported(run: Path) -> set[int]:
    """Steps of a run's whole checkpoints whose export is not there and has not failed."""
    failed = {step for step, export in Records(run / "hf").exports.items() if export.failed}
    return {step_of(checkpoint) for checkpoint in whole_checkpoints(run)} - exported(run).keys() - failed
