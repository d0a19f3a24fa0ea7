"""What a round came to: results.json, the tables as text, Markdown and a page with pictures.

    runs' folders --run_folder.outcome--> Outcomes --this file--> OUTPUT/results.json, table.md, report.html

results.json holds one entry a run, with all that `python -m evaluation fit` needs, and one comparison a change and score.
A run that has diverged stands in all of them and in no mean.
"""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.ablations import figures
from evaluation.ablations.noise import CONFIDENCE, Comparison, compare
from evaluation.ablations.run_folder import Outcome
from evaluation.ablations.sweep import Round, Run
from evaluation.ablations.trainer import Plan
from smol_console import short, table
from smol_files import write_whole

RULE = (
    "The band is what seeds alone do to the difference, 19 times in 20: Student's t times the spread within arms times "
    "sqrt(1/m + 1/k), for m seeds of the change and k of the baseline (evaluation/ablations/noise.py)."
)
Outcomes = dict[str, list[tuple[Run, Outcome]]]
"""By arm."""
STYLE = """body { font: 15px sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .7em; text-align: right }
th, td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } .better { color: #1a7f37; font-weight: bold }
.worse, .diverged, .failed { color: #b42318; font-weight: bold } img { max-width: 100% }"""


def results(current: Round, plans: dict[str, Plan], outcomes: Outcomes, higher: dict[str, bool], sweep: Path) -> dict[str, Any]:
    """The record of results.json. `higher` says of the suite's scores whether higher is better; losses are not in it."""
    scores = scores_by_name(outcomes)
    comparisons: dict[str, dict[str, Any]] = {}
    for arm in current.changes:
        found = {
            name: compare(values, current.baseline.name, arm.name, higher.get(name, False)) for name, values in scores.items()
        }
        comparisons[arm.name] = {name: _written(one) for name, one in found.items() if one}
    return {
        "sweep": str(sweep),
        "round": current.number,
        "baseline": current.baseline.name,
        "overrides": {arm.name: list(arm.overrides) for arm in current.arms},
        "rule": RULE,
        "higher_is_better": {name: higher.get(name, False) for name in scores},
        "runs": [_run(run, plans[run.arm], found) for of_arm in outcomes.values() for run, found in of_arm],
        "comparisons": comparisons,
    }


def scores_by_name(outcomes: Outcomes) -> dict[str, dict[str, list[float]]]:
    """Of the runs that are done: score, arm, values."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm, runs in outcomes.items():
        for _, one in runs:
            for name, value in one.scores.items():
                found.setdefault(name, {}).setdefault(arm, []).append(value)
    return found


def _written(one: Comparison) -> dict[str, Any]:
    return {**asdict(one), "difference": one.difference}


def _run(run: Run, plan: Plan, found: Outcome) -> dict[str, Any]:
    optim, train, data = (plan["config"][section] for section in ("optim", "train", "data"))
    return {
        "arm": run.arm,
        "seed": run.seed,
        "folder": str(run.folder),
        "state": found.state,
        "reason": found.reason,
        "parameters": plan["parameters"],
        "learning_rate": optim["learning_rate"],
        "batch_tokens": train["global_batch_size"] * data["sequence_length"] if "sequence_length" in data else None,
        **found.numbers,
        "scores": found.scores,
    }


# --- tables ------------------------------------------------------------------------------------------------------------------

Rows = tuple[Sequence[str], list[list[str]]]
"""Header and rows."""


def arm_rows(record: dict[str, Any]) -> Rows:
    """A line an arm: how its runs ended, what they cost, how its comparisons came out."""
    header = ("arm", "runs", "parameters", "tokens", "loss", "tokens/s", "device-hours", "better", "worse", "within noise")
    rows = []
    for arm in record["overrides"]:
        runs = [run for run in record["runs"] if run["arm"] == arm]
        done = [run for run in runs if run["state"] == "done"]
        verdicts = [one["verdict"] for one in record["comparisons"].get(arm, {}).values()]
        states = [run["state"] for run in runs]
        counts = [str(verdicts.count(verdict)) if verdicts else "-" for verdict in ("better", "worse", "within noise")]
        rows.append(
            [
                arm,
                ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
                short(runs[0]["parameters"]),
                short(_mean(run["tokens"] for run in runs if "tokens" in run)),
                _number(_mean(run["loss"] for run in done), "{:.4f}"),
                _number(_mean(run["tokens_per_second"] for run in runs if "tokens" in run), "{:,.0f}"),
                _hours(runs),
                *counts,
            ]
        )
    return header, rows


def run_rows(record: dict[str, Any]) -> Rows:
    """A line a run."""
    header = ("run", "state", "tokens", "loss", "tokens/s", "devices", "device-hours")
    rows = []
    for run in record["runs"]:
        rows.append(
            [
                f"{run['arm']}, seed {run['seed']}",
                run["state"],
                short(run.get("tokens")),
                _number(run.get("loss"), "{:.4f}"),
                _number(run.get("tokens_per_second"), "{:,.0f}"),
                str(run.get("devices", "-")),
                _hours([run]),
            ]
        )
    return header, rows


def score_rows(record: dict[str, Any]) -> Rows:
    """A line a change and score, the decided ones first."""
    header = ("change", "score", "baseline", "value", "difference", "band", "verdict")
    order = ("better", "worse", "noise unknown", "within noise")
    rows = []
    for arm, of_arm in record["comparisons"].items():
        for name, one in sorted(of_arm.items(), key=lambda item: order.index(item[1]["verdict"])):
            band = _number(one["band"], "± {:.4f}")
            values = [f"{one['baseline']:.4f}", f"{one['change']:.4f}", f"{one['difference']:+.4f}", band]
            rows.append([arm, name.removeprefix("eval/"), *values, one["verdict"]])
    return header, rows


def notes(record: dict[str, Any]) -> list[str]:
    """What has to be said beside the tables: how runs failed, how the verdicts are to be read."""
    told = [
        f"{run['arm']}, seed {run['seed']}: {run['state']}{': ' if run['reason'] else ''}{run['reason']}"
        for run in record["runs"]
        if run["state"] != "done" or run["reason"]
    ]
    decided = [one for of_arm in record["comparisons"].values() for one in of_arm.values() if one["band"] is not None]
    if decided:
        expected = (1 - CONFIDENCE) * len(decided)
        told.append(f"{RULE} Of {len(decided)} comparisons about {expected:.1f} fall outside it by chance.")
    if any(one["band"] is None for of_arm in record["comparisons"].values() for one in of_arm.values()):
        told.append("The noise is not known: no arm has two finished seeds; give seeds.baseline several.")
    return told


def text(record: dict[str, Any]) -> str:
    """For the terminal."""
    (arms, arm_lines), (scores, score_lines) = arm_rows(record), score_rows(record)
    return "\n\n".join([table(arms, arm_lines, left=2), table(scores, score_lines, left=2), *notes(record)])


def _hours(runs: Sequence[dict[str, Any]]) -> str:
    """Of all of them together; GPU where it is known that all devices were GPUs."""
    hours = [run["device_hours"] for run in runs if "device_hours" in run]
    gpus = all("gpu_hours" in run for run in runs if "device_hours" in run)
    return f"{sum(hours):,.3g}{' GPU' if gpus else ''}" if hours else "-"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


# --- files -------------------------------------------------------------------------------------------------------------------


def write(folder: Path, record: dict[str, Any]) -> None:
    """results.json, table.md, the pictures and report.html, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"losses.png": figures.losses(record), "differences.png": figures.differences(record)}
    pictures = {name: picture for name, picture in drawn.items() if picture}
    texts = {"results.json": json.dumps(record, indent=1) + "\n", "table.md": _markdown(record)}
    texts["report.html"] = _page(record, list(pictures.values()))
    for name, content in (texts | pictures).items():
        write_whole(folder / name, content)


def _markdown(record: dict[str, Any]) -> str:
    parts = []
    for header, rows in (arm_rows(record), score_rows(record)):
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, *notes(record)]) + "\n"


def _cell(text: str) -> str:
    """In its colour, where STYLE has one for its last word."""
    word = text.split(" ")[-1]
    named = f" class='{word}'" if f".{word}" in STYLE and word.isalpha() else ""
    return f"<td{named}>{html.escape(text)}</td>"


def _table(lines: Rows) -> str:
    header, rows = lines
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    return "\n".join([f"<table><tr>{head}</tr>", *(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows), "</table>"])


def _page(record: dict[str, Any], pictures: list[bytes]) -> str:
    """Everything in one file: the pictures inside."""
    title = f"{Path(record['sweep']).stem}, round {record['round']}"
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    parts += [_table(arm_rows(record)), _table(score_rows(record))]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes(record)]
    parts += [f"<img alt='' src='data:image/png;base64,{base64.b64encode(picture).decode()}'>" for picture in pictures]
    parts += ["<h2>Runs</h2>", _table(run_rows(record)), "<h2>What each change sets</h2><ul>"]
    for arm, overrides in record["overrides"].items():
        parts.append(f"<li>{html.escape(arm)}: {html.escape(' '.join(overrides)) or 'nothing'}</li>")
    return "\n".join([*parts, "</ul></html>"]) + "\n"
