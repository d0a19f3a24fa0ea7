"""`compare`: models or steps side by side, score by score, on the questions that all of them answered (pairs.py).

[NAME=]OUT_DIR of `run` ...; the first name is what the others are compared with; a name given again is another seed
    -->  a table each, OUT/compare.json, OUT/compare.png
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.pairs import Difference, difference
from smol_config import UserError
from smol_console import add_command, table

Models = dict[str, list[Path]]
"""By name, the folders of its seeds."""
Record = Mapping[str, Any]
"""A results.json."""
Differences = dict[str, dict[str, Difference]]
"""By name and score."""
AT_PEAK, DECAYED = 0.99, 0.5
"""Shares of the peak learning rate. Decaying it lowers the loss by as much as many thousand steps at the peak do (Hägele et al.
2024, arXiv 2405.18392, figure 3), so a checkpoint of the stable phase says little beside a decayed one."""


def compare(options: argparse.Namespace) -> int:
    """Compare, print, draw; raises UserError for what cannot be read or compared, with nothing written."""
    models = _models(options.results)
    records = {name: [_record(folder) for folder in folders] for name, folders in models.items()}
    if options.output.exists():
        raise UserError(f"--output {options.output} is there already; give a new folder, or remove it")
    first, *others = models
    found: Differences = {other: {} for other in others}
    left_out: dict[str, list[str]] = {other: [] for other in others}
    better = records[first][0]["higher_is_better"]
    for other in others:
        for name in _shared_scores(records[first] + records[other]):
            apart = difference(name, models[first], models[other], better.get(name, True))
            if apart:
                found[other][name] = apart
            else:
                left_out[other].append(name)
        if not found[other]:
            raise UserError(f"{first} and {other} have no question of a score in common; score both with the same suite")
    for other in others:
        print(_table(first, other, found[other], better) + "\n")
    for warning in [*_warnings(models, records), *_left_out(first, left_out)]:
        print(f"warning: {warning}", file=sys.stderr)
    options.output.mkdir(parents=True)
    _write(options.output / "compare.json", models, found, left_out, better)
    draw(first, found, better, options.output / "compare.png")
    print(f"wrote {options.output}/compare.json and compare.png")
    return 0


def _models(given: Sequence[str]) -> Models:
    models: Models = {}
    for text in given:
        name, _, folder = text.rpartition("=")
        models.setdefault(name or Path(folder).name, []).append(Path(folder))
    if len(models) < 2:
        raise UserError(f"only {next(iter(models))} is given; name two models, as in base=runs/a/scores wide=runs/b/scores")
    return models


def _record(folder: Path) -> Record:
    path = folder / "results.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); make it with `python -m evaluation run`") from error


def _shared_scores(records: Sequence[Record]) -> list[str]:
    return [name for name in records[0]["results"] if all(name in record["results"] for record in records)]


def _table(first: str, other: str, apart: Mapping[str, Difference], better: Mapping[str, bool]) -> str:
    rows = [
        [
            name,
            f"{one.first:.4f}",
            f"{one.other:.4f}",
            f"{one.interval[0]:+.4f} .. {one.interval[1]:+.4f}",
            one.said(better.get(name, True)),
            f"{100 * one.win_rate:.0f} %",
            f"{one.questions:,}",
        ]
        for name, one in apart.items()
    ]
    return table(["score", first, other, f"{other} less {first}, 95 %", "it is", "wins", "questions"], rows)


# --- what makes a comparison say less than it seems to ---------------------------------------------------------------------


def _warnings(models: Models, records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    first, *others = models
    for other in others:
        one, two = records[first][0], records[other][0]
        yield from _unlike_phases((first, one), (other, two))
        both = one["tasks"].keys() & two["tasks"].keys()
        if any(one["tasks"][label]["prompts_sha256"] != two["tasks"][label]["prompts_sha256"] for label in both):
            yield (
                f"{first} and {other} were not asked with the same words: templates, shots or subsets differ; compared are the "
                "questions that both answered"
            )
        if len(engines := {record.get("engine", {}).get("name", "transformers") for record in (one, two)}) > 1:
            yield f"{first} and {other} were answered by {' and '.join(sorted(engines))}, which round apart; take one"
        if differ := [name for name, version in one["versions"].items() if two["versions"].get(name) != version]:
            yield f"{first} and {other} were scored with other versions of {', '.join(differ)}; score both with the same"


def _unlike_phases(*pair: tuple[str, Record]) -> Iterator[str]:
    shares = {name: record.get("learning_rate_share") for name, record in pair}
    stable = [name for name, share in shares.items() if share is not None and share >= AT_PEAK]
    decayed = [name for name, share in shares.items() if share is not None and share <= DECAYED]
    if stable and decayed:
        record = dict(pair)[stable[0]]
        yield (
            f"{stable[0]} was at its peak learning rate and {decayed[0]} was decayed, which alone makes it better; branch a "
            f"decay off step {record['step']:,} of {stable[0]}, as configs/examples/decay_branch.yaml does, and compare that"
        )


def _left_out(first: str, of_others: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for other, names in of_others.items():
        if names:
            yield (
                f"not compared, {first} and {other}: {', '.join(names)}: no question with samples of both, or no mean, share, "
                "bits or perplexity over questions"
            )


# --- what is written ---------------------------------------------------------------------------------------------------------


def _write(
    path: Path, models: Models, found: Differences, left_out: Mapping[str, Sequence[str]], better: Mapping[str, bool]
) -> None:
    record = {
        "first": next(iter(models)),
        "models": {name: list(map(str, folders)) for name, folders in models.items()},
        "differences": {
            other: {name: asdict(one) | {"it is": one.said(better.get(name, True))} for name, one in apart.items()}
            for other, apart in found.items()
        },
        "not_compared": left_out,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


def draw(first: str, found: Differences, better: Mapping[str, bool], path: Path) -> None:
    """A line a score: every other model's difference with its interval. Scores whose unit is not a share have a panel of
    their own; where lower is better the difference is turned round, so that right of 0 is better throughout."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for apart in found.values() for name in apart))
    groups = [[name for name in names if better.get(name, True) == higher] for higher in (True, False)]
    groups = [group for group in groups if group]
    figure, panels = pyplot.subplots(
        len(groups),
        1,
        figsize=(8, 1.4 + 0.34 * len(names) * len(found) ** 0.5),
        squeeze=False,
        layout="constrained",
        height_ratios=[len(group) + 1 for group in groups],
    )
    for panel, group in zip(panels[:, 0], groups, strict=True):
        sign = 1 if better.get(group[0], True) else -1
        for number, (other, apart) in enumerate(found.items()):
            offset = 0.6 * ((number + 0.5) / len(found) - 0.5)
            shown = [(row, apart[name]) for row, name in enumerate(group) if name in apart]
            values = [sign * one.value for _, one in shown]
            errors = [[abs(one.value - one.interval[end]) for _, one in shown] for end in ((0, 1) if sign > 0 else (1, 0))]
            rows = [row + offset for row, _ in shown]
            panel.errorbar(values, rows, xerr=errors, fmt="o", markersize=4, capsize=2, color=f"C{number}", label=other)
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_yticks(range(len(group)), [name.removeprefix("eval/") for name in group], fontsize=8)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
        panel.set_xlabel("score" if sign > 0 else "less of it (bits per byte, loss)", fontsize=8)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"better than {first}: right of 0; 95 %, over questions and seeds", fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def add_parser(commands: Any) -> None:
    """The parser of `compare`."""
    command = add_command(
        commands,
        "compare",
        "Models or steps side by side: differences on the same questions with 95 % intervals, and win rates.",
        "python -m evaluation compare base=runs/a/scores wide=runs/b/scores wide=runs/c/scores --output runs/compare",
    )
    command.add_argument(
        "results", nargs="+", metavar="[NAME=]OUT_DIR", help="what run wrote; the first is the baseline; same NAME: seeds"
    )
    command.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder: compare.json and .png")
    command.set_defaults(run=compare)
