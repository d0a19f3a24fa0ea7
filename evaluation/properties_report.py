"""`properties`: the four properties of each score (properties.py) as a table, a file and a picture.

Beside them stands whether a run's first, middle and last checkpoints differ by more than the noise of questions, from paired
intervals: the same questions, answered by both.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.pairs import difference
from evaluation.properties import PROPERTIES, Runs, Verdict, curve_of, judge, read_runs
from smol_config import UserError
from smol_console import add_command, table


def properties(options: argparse.Namespace) -> int:
    """Judge, print, draw; raises UserError for what cannot be read, with nothing written."""
    runs = read_runs(options.runs)
    every = [records for of_model in runs.values() for records in of_model]
    names = [
        name
        for name in next(iter(every[0].values()))["results"]
        if all(name in r["results"] for run in every for r in run.values())
    ]
    if not names:
        raise UserError("the results have no score in common; score all checkpoints with the same suite")
    if options.output.exists():
        raise UserError(f"--output {options.output} is there already; give a new folder, or remove it")
    verdicts = {name: judge(name, runs) for name in names}
    print(_verdict_table(verdicts))
    print("\n" + _apart_table(names, every[0]))
    options.output.mkdir(parents=True)
    written = {
        name: vars(verdict) | {"passes": dict(zip(PROPERTIES, verdict.passes(), strict=True))}
        for name, verdict in verdicts.items()
    }
    (options.output / "properties.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf8")
    draw(runs, verdicts, options.output / "properties.png")
    print(f"\nwrote {options.output}/properties.json and properties.png")
    return 0


def _verdict_table(verdicts: Mapping[str, Verdict]) -> str:
    def cell(value: float | None, passes: bool | None) -> str:
        return "-" if value is None else f"{value:.2f} {'yes' if passes else 'no'}"

    rows = []
    for name, verdict in verdicts.items():
        found = (verdict.monotone, verdict.low_noise, verdict.above_chance, verdict.stable_ranking)
        noise = "-" if verdict.noise is None else f"{verdict.noise:.4f}"
        rows.append([name, *map(cell, found, verdict.passes()), noise, "seeds" if verdict.seeds else "questions"])
    return table(["score", *PROPERTIES, "noise", "over"], rows)


def _apart_table(names: Sequence[str], records: Mapping[int, dict[str, Any]]) -> str:
    """Whether the first, the middle and the last checkpoint of a run differ, by paired intervals."""
    steps = list(records)
    pairs = list(itertools.pairwise(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]])))
    rows = []
    for name in names:
        higher = records[steps[0]]["higher_is_better"].get(name, True)
        row = [name]
        for earlier, later in pairs:
            apart = difference(name, [Path(records[earlier]["folder"])], [Path(records[later]["folder"])], higher)
            low, high = apart.interval if apart else (0.0, 0.0)
            row.append(f"{low:+.4f} .. {high:+.4f} {apart.said(higher):>6}" if apart else "-")
        rows.append(row)
    return table(["later less earlier, 95 %", *(f"{earlier} to {later}" for earlier, later in pairs)], rows)


def draw(runs: Runs, verdicts: Mapping[str, Verdict], path: Path) -> None:
    """A panel a score: every run's curve, the interval of its questions, chance, and which properties it has."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(4, len(verdicts))
    rows = -(-len(verdicts) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    colours = {model: f"C{number}" for number, model in enumerate(runs)}
    for panel, (name, verdict) in zip(panels.flat, verdicts.items(), strict=False):
        for model, of_model in runs.items():
            for records in of_model:
                curve = curve_of(name, records)
                panel.plot(curve.steps, curve.values, marker=".", color=colours[model], label=model)
                bands = [record["intervals"].get(name) for record in records.values()]
                if all(bands):
                    panel.fill_between(curve.steps, *zip(*bands, strict=True), color=colours[model], alpha=0.15, linewidth=0)
        chance = next(iter(next(iter(runs.values()))[0].values()))["chance"].get(name)
        if chance is not None:
            panel.set_ylim(panel.get_ylim())  # of the curves: chance may be far away
            panel.axhline(chance, color="grey", linestyle=":")
        marks = " ".join({True: "✓", False: "✗", None: "–"}[passed] for passed in verdict.passes())
        panel.set_title(f"{name.removeprefix('eval/')}   {marks}", fontsize=9)
    for panel in panels.flat[len(verdicts) :]:
        panel.set_axis_off()
    panels[0][0].legend(*_once(panels[0][0]), fontsize=8)
    figure.suptitle(f"{', '.join(PROPERTIES)}: ✓ has it, ✗ has it not, – not measured; dotted: chance", fontsize=9)
    figure.supxlabel("training step", fontsize=9)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _once(panel: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of a legend in which a model's seeds stand once."""
    named = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    return list(named.values()), list(named)


def add_parser(commands: Any) -> None:
    """The parser of `properties`."""
    command = add_command(
        commands,
        "properties",
        "Which scores are monotone, above noise, above chance and stable in their ranking, over the checkpoints of runs.",
        "python -m evaluation properties base=runs/a/scores base=runs/b/scores wide=runs/c/scores --output runs/properties",
    )
    command.add_argument(
        "runs", nargs="+", metavar="[MODEL=]FOLDER", help="a run's results, a checkpoint each; same MODEL: seeds"
    )
    command.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder: properties.json and .png")
    command.set_defaults(run=properties)
