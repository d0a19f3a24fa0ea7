"""What a run is held against while it trains: another run's scores by step, or published scores. Used by report.py.

    NAME=FOLDER        results of `run` in FOLDER/*, one a checkpoint (another run's RUN/evaluations/SUITE; of Slurm's jobs
                       RUN/evaluations)
    NAME=scores.json   {"eval/TASK/METRIC": number}: of a finished model, drawn as a level; no step is behind it

Two runs are compared where they have seen as many tokens, or at the same step where a side does not know its tokens.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.pairs import difference
from smol_config import UserError

Record = Mapping[str, Any]
"""A results.json, with its "folder"; without one where a number a score is all that is known."""
SAME_TOKENS = 0.01
"""Runs whose tokens differ by less than this share are at the same place: batches of other sizes never meet exactly, and no
score moves in so few."""


@dataclass(frozen=True)
class Reference:
    """Scores to be drawn beside a run's."""

    name: str
    records: Sequence[Record] = ()
    """Of a run."""
    level: Mapping[str, float] | None = None
    """Of a finished model."""

    def at(self, ours: Record) -> Record | None:
        """The reference's checkpoint at the same place as ours."""
        if ours["tokens"] and (told := [record for record in self.records if record["tokens"]]):
            nearest = min(told, key=lambda record: abs(record["tokens"] - ours["tokens"]))
            return nearest if abs(nearest["tokens"] / ours["tokens"] - 1) < SAME_TOKENS else None
        return next((record for record in self.records if record["step"] == ours["step"]), None)

    def beside(self, ours: Sequence[Record]) -> list[Record]:
        """Records to be drawn beside ours: the run's own, or its level at each of our checkpoints."""
        if self.level is None:
            return list(self.records)
        return [
            {**record, "results": {name: self.level[name] for name in record["results"] if name in self.level}}
            for record in ours
        ]


def load_reference(text: str) -> Reference:
    """Of NAME=FOLDER or NAME=scores.json; raises UserError for anything else, and for what cannot be read."""
    name, _, place = text.partition("=")
    if not re.fullmatch(r"[\w.-]+", name) or not place:
        raise UserError(
            f"the reference {text} is not NAME=FOLDER or NAME=scores.json; write it like wide=runs/wide/evaluations/S"
        )
    path = Path(place)
    if path.is_dir():
        if not (records := read_records(path)):
            raise UserError(f"the reference {place} holds no */results.json; give a folder that watch or run filled")
        return Reference(name, records)
    try:
        level = {str(score): float(value) for score, value in json.loads(path.read_text(encoding="utf8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'the reference {place} cannot be read ({error}); it must hold {{"eval/TASK/METRIC": number}}, or be a folder'
        ) from error
    return Reference(name, level=level)


def load_references(given: Sequence[str]) -> list[Reference]:
    """Each of `load_reference`; raises UserError for two of one name, too."""
    found = [load_reference(text) for text in given]
    for name, count in Counter(reference.name for reference in found).items():
        if count > 1:
            raise UserError(f"{count} references are named {name}, and scores are drawn by name; give each one of its own")
    return found


def read_records(folder: Path) -> list[Record]:
    """Every FOLDER/*/results.json, in the order of steps; those without a step cannot be drawn and are left out.

    Of a step that was evaluated twice, as after a rollback on Slurm, the newest. Raises UserError for one that `run` did not
    write.
    """
    found = {}
    for path in sorted(folder.glob("*/results.json"), key=lambda path: path.stat().st_mtime):
        if ".partial" not in path.parent.name:
            record = json.loads(path.read_text(encoding="utf8"))
            if missing := {"step", "tokens", "results", "intervals", "chance", "higher_is_better"} - record.keys():
                raise UserError(f"{path} has no {', '.join(sorted(missing))}; give results of `python -m evaluation run`")
            found[record["step"]] = record | {"folder": str(path.parent)}
    return [found[step] for step in sorted(found.keys() - {None})]


def behind(ours: Record, theirs: Record) -> dict[str, str]:
    """Score -> by how much ours is worse, of scores that are worse by more than the noise of questions.

    The noise is the 95 % interval of the paired difference, or, where no samples are left, ours of the score alone.
    """
    found = {}
    for name, value in ours["results"].items():
        if name not in theirs["results"]:
            continue
        reference, better = theirs["results"][name], ours["higher_is_better"].get(name, True)
        apart = difference(name, [Path(theirs["folder"])], [Path(ours["folder"])], better)
        if apart:
            low, high = apart.interval
            if apart.said(better) == "worse":
                found[name] = f"{apart.other:.4f} beside {apart.first:.4f} (95 % of the difference: {low:+.4f} .. {high:+.4f})"
        elif interval := ours["intervals"].get(name):
            low, high = interval
            if (high < reference) if better else (low > reference):
                found[name] = f"{value:.4f} (95 %: {low:.4f} .. {high:.4f}) beside {reference:.4f}"
    return found


def draw(run: str, ours: Sequence[Record], references: Sequence[Reference], path: Path) -> None:
    """A panel a score: the run's curve with the interval of its questions, references dashed, chance dotted; over tokens where
    all checkpoints know them, else over steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for record in ours for name in record["results"]))
    curves: list[tuple[str, Sequence[Record], str]] = [(run, ours, "C0.-")]
    curves += [(one.name, one.beside(ours), f"C{number}.--") for number, one in enumerate(references, start=1)]
    axis = "tokens" if all(record["tokens"] for _, records, _ in curves for record in records) else "step"
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    for panel, name in zip(panels.flat, names, strict=False):
        for label, records, style in curves:
            scored = [record for record in records if name in record["results"]]
            places = [record[axis] for record in scored]
            if scored:
                panel.plot(places, [record["results"][name] for record in scored], style, label=label)
            bands = [record["intervals"].get(name) for record in scored]
            if scored and records is ours and all(bands):
                panel.fill_between(places, *zip(*bands, strict=True), alpha=0.15, linewidth=0)
        chance = ours[-1]["chance"].get(name)
        if chance is not None:
            panel.set_ylim(panel.get_ylim())  # of the curves: chance may be far away
            panel.axhline(chance, color="grey", linestyle=":")
        panel.set_title(name.removeprefix("eval/"), fontsize=9)
        panel.legend(fontsize=7)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("tokens" if axis == "tokens" else "training step", fontsize=9)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=80)
    partial.rename(path)
    pyplot.close(figure)
