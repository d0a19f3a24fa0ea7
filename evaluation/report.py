"""What is made of a run's scores as they come: curves, a picture, and an alert where the run is behind a reference, once.

    records, a checkpoint each --Report.make--> RUN/tensorboard/evaluations, evaluations_by_tokens (scalars.py)
                                                FOLDER/scores.png, FOLDER/behind.json, alerts (reference.py)

For whoever evaluates every checkpoint of a run: watch.py on one machine, slurm/evaluations.py on a cluster. Nothing heavy is
loaded, for the process lives beside the run on a node that has other work.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.service import say
from conversion.watching import Tell
from evaluation.reference import Record, Reference, behind, draw, load_references
from evaluation.scalars import add_records
from smol_files import write_json

BEHIND_NAME = "behind.json"


class Report:
    """Of one run, by the one process that evaluates it; FOLDER is where its picture and comparisons lie."""

    def __init__(self, run: Path, folder: Path, references: Sequence[str], tell: Tell) -> None:
        """`references` are NAME=PLACE, as reference.py takes them."""
        self.run, self.folder, self.references, self.tell = run, folder, references, tell

    def make(self, ours: Sequence[Record]) -> None:
        """Of all records of the run, in the order of steps, so that nothing is lost or told twice after a kill.

        Raises UserError, with the run's own scores in TensorBoard, where a reference cannot be read any more.
        """
        if not any(record["results"] for record in ours):
            return
        tensorboard = self.run / "tensorboard"
        add_records(tensorboard, ours)
        references = load_references(self.references)  # again: they may be training, too
        for reference in references:
            add_records(tensorboard, reference.beside(ours), f"reference/{reference.name}")
            self._compare(ours, reference)
        draw(self.run.name, ours, references, self.folder / "scores.png")

    def forget(self, name: str) -> None:
        """Compare again what will be evaluated anew in a folder of that name."""
        compared = self._compared()
        for names in compared.values():
            names.pop(name, None)
        write_json(self.folder / BEHIND_NAME, compared)

    def _compare(self, ours: Sequence[Record], reference: Reference) -> None:
        """Tell of what is behind, each evaluation once. One without a folder has no intervals, and so is never behind."""
        compared = self._compared()
        names = compared.setdefault(reference.name, {})
        for record in ours:
            name = Path(record.get("folder", "")).name
            if not name or name in names or (theirs := reference.at(record)) is None:
                continue
            found = behind(record, theirs)
            for score, told in found.items():
                say(f"WARNING: step {record['step']}: behind {reference.name}: {score} {told}")
            if found:
                told = "; ".join(f"{score} {how}" for score, how in found.items())
                self.tell("behind", f"step {record['step']:,} is behind {reference.name}: {told}")
            names[name] = found
            write_json(self.folder / BEHIND_NAME, compared)

    def _compared(self) -> dict[str, dict[str, Any]]:
        """Reference -> name of an evaluation's folder -> scores that were behind."""
        path = self.folder / BEHIND_NAME
        return dict(json.loads(path.read_text(encoding="utf8"))) if path.is_file() else {}
