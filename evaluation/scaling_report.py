"""`fit`: scaling laws (scaling_laws.py) from the results of ablate or a CSV: what they are, what they predict, pictures.

    results.json of sweeps, or RUNS.csv  -->  Points  --scaling_laws-->  OUT_DIR/laws.json, laws.png

A CSV has a line a run: parameters, tokens and loss, and learning_rate and batch_tokens where those are studied.
"""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import scaling_laws
from evaluation.scaling_laws import Best, LossLaw, Point, PowerLaw, interval
from smol_config import UserError, nearest
from smol_console import add_command, short, table

SETTINGS = ("learning_rate", "batch_tokens")
NEEDED = ("parameters", "tokens", "loss")
FAR = 10.0
"""Beyond so many times the largest compute of the runs, a prediction is said to be an extrapolation."""


def fit(options: argparse.Namespace) -> int:
    """Fit what the runs allow, print, draw; raises UserError, with nothing written, when they allow nothing."""
    points = [point for path in options.results for point in read_points(path, options.score)]
    if options.output.exists():
        raise UserError(f"--output {options.output} is there already; give a new folder, or remove it")
    if bool(options.parameters) != bool(options.tokens):
        raise UserError("--parameters and --tokens say together which run is predicted; give both, or --compute alone")
    why_not = scaling_laws.identifiable(points)
    bests = {setting: scaling_laws.best_settings(points, setting) for setting in SETTINGS}
    powers = {setting: power for setting in SETTINGS if (power := scaling_laws.fit_power(bests[setting]))}
    if why_not and not powers:
        raise UserError(
            f"{why_not}; and no learning rate or batch was found best at two computes, inside the values that were tried"
        )
    law = None if why_not else scaling_laws.fit_loss(points)
    laws = scaling_laws.resampled_laws(points, law) if law else []
    record: dict[str, Any] = {"runs": len(points), "score": options.score}
    print(f"{len(points)} runs, {short(min(p.compute for p in points))} to {short(max(p.compute for p in points))} FLOPs")
    if law:
        record["loss"] = _told_loss(law, laws, points)
    else:
        print(f"no loss law: {why_not}")
    for setting, found in bests.items():
        if found:
            record[setting] = _told_setting(setting, found, powers.get(setting))
    record["predictions"] = _predictions(options, law, laws, powers, points)
    options.output.mkdir(parents=True)
    (options.output / "laws.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    draw(points, law, bests, powers, options.output / "laws.png")
    print(f"\nwrote {options.output}/laws.json and laws.png")
    return 0


def read_points(path: Path, score: str) -> list[Point]:
    """The finished runs of a file; of a results.json with the loss that `score` names. Raises UserError for another file."""
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf8", newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            runs = json.loads(path.read_text(encoding="utf8"))["runs"]
            rows = [run | {"loss": _score(run, score, path)} for run in runs if run["state"] == "done"]
            if left := len(runs) - len(rows):
                print(f"{path}: {left} of {len(runs)} runs left out, which are not done")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as results ({error}); give a results.json of ablate, or a .csv") from error
    return [_point(row, f"{path}, run {number}") for number, row in enumerate(rows, 1)]


def _score(run: dict[str, Any], score: str, path: Path) -> float:
    known = {"loss": run["loss"], **run["scores"]}
    if score not in known:
        raise UserError(f"--score {score!r} is no score of {run['arm']} in {path}; {nearest(score, known)}")
    return float(known[score])


def _point(row: dict[str, Any], where: str) -> Point:
    values: dict[str, float] = {}
    for name in (*NEEDED, *SETTINGS):
        text = row.get(name)
        if text in (None, "") and name in SETTINGS:
            continue
        try:
            values[name] = float(text)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UserError(f"{where}: {name} is {text!r}, no number; every run needs {', '.join(NEEDED)}") from None
        if not (values[name] > 0 and math.isfinite(values[name])):
            raise UserError(f"{where}: {name} is {text}; it must be above 0 and finite, so leave the run out")
    return Point(**values)


# --- what is told ------------------------------------------------------------------------------------------------------------


def _told_loss(law: LossLaw, laws: Sequence[LossLaw], points: Sequence[Point]) -> dict[str, Any]:
    names = ("E", "A", "B", "alpha", "beta")
    ranges = [interval([one[at] for one in laws]) for at in range(5)]
    a = law.beta / (law.alpha + law.beta)
    a_range = interval([one.beta / (one.alpha + one.beta) for one in laws])
    off = [math.log(law.loss(point.parameters, point.tokens) / point.loss) for point in points]
    worst = max(map(abs, off))
    print("\nL(N, D) = E + A / N^alpha + B / D^beta, 95 % by resampling the runs")
    rows = [[name, f"{value:.5g}", _range(range_)] for name, value, range_ in zip(names, law, ranges, strict=True)]
    rows.append(["N grows as C^a, a", f"{a:.3f}", _range(a_range)])
    print(table(["", "value", "95 %"], rows))
    print(f"the law is off by {100 * worst:.2f} % of a run's loss at most")
    return {
        **{name: {"value": value, "interval": range_} for name, value, range_ in zip(names, law, ranges, strict=True)},
        "allocation_exponent": {"value": a, "interval": a_range},
        "largest_relative_error": worst,
    }


def _told_setting(setting: str, found: Sequence[Best], law: PowerLaw | None) -> dict[str, Any]:
    print(f"\nbest {setting}")
    rows = [[short(one.compute), f"{one.value:.4g}", "the edge of what was tried" if one.at_edge else ""] for one in found]
    print(table(["FLOPs", "best", ""], rows))
    if law:
        within = "{:.4f} .. {:.4f}".format(*law.exponent_interval) if law.exponent_interval else "not known from two computes"
        print(f"{setting} = {law.coefficient:.4g} x C^{law.exponent:.4f}; 95 % of the exponent: {within}")
    else:
        print("too few for a power law: two computes")
    return {"best": [one._asdict() for one in found], "law": law._asdict() if law else None}


def _predictions(
    options: argparse.Namespace,
    law: LossLaw | None,
    laws: Sequence[LossLaw],
    powers: dict[str, PowerLaw],
    points: Sequence[Point],
) -> list[dict[str, Any]]:
    """For --parameters with --tokens, and for --compute."""
    found = []
    if options.parameters:
        found.append(_predicted(options.parameters, options.tokens, law, laws, powers))
    if options.compute and law:
        found.append(_predicted(*law.allocation(options.compute), law, laws, powers))
    elif options.compute:
        found.append({"compute": options.compute, **{name: power.at(options.compute) for name, power in powers.items()}})
    for one in found:
        print("\nprediction: " + ", ".join(f"{name} {_shown(value)}" for name, value in one.items()))
        if one["compute"] > FAR * max(point.compute for point in points):
            print(f"this is an extrapolation: over {FAR:.0f} times the compute of the largest run")
    return found


def _predicted(n: float, d: float, law: LossLaw | None, laws: Sequence[LossLaw], powers: dict[str, PowerLaw]) -> dict[str, Any]:
    one: dict[str, Any] = {"parameters": n, "tokens": d, "compute": 6 * n * d}
    if law:
        one |= {"loss": law.loss(n, d), "loss_interval": interval([other.loss(n, d) for other in laws])}
    return one | {name: power.at(6 * n * d) for name, power in powers.items()}


def _range(range_: tuple[float, float]) -> str:
    return f"{range_[0]:.5g} .. {range_[1]:.5g}"


def _shown(value: Any) -> str:
    return _range(value) if isinstance(value, tuple) else f"{value:.4g}"


# --- pictures ----------------------------------------------------------------------------------------------------------------


def draw(
    points: Sequence[Point],
    law: LossLaw | None,
    bests: dict[str, list[Best]],
    powers: dict[str, PowerLaw],
    path: Path,
) -> None:
    """A panel a law: losses by tokens, a colour a size, with the law's curves; best settings by compute with their line."""
    import numpy as np
    from matplotlib.figure import Figure

    shown = [setting for setting in SETTINGS if bests[setting]]
    figure = Figure(figsize=(5 * (1 + len(shown)), 4), layout="constrained")
    first, *rest = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    lengths = np.geomspace(min(p.tokens for p in points), max(p.tokens for p in points), 50)
    for number, size in enumerate(sorted({point.parameters for point in points})):
        mine = [point for point in points if point.parameters == size]
        colour = f"C{number % 10}"
        first.plot([p.tokens for p in mine], [p.loss for p in mine], "o", color=colour, label=f"N = {short(size)}")
        if law:
            first.plot(lengths, [law.loss(size, length) for length in lengths], color=colour, linewidth=1)
    first.set(xscale="log", xlabel="tokens D", ylabel="loss (nats)")
    first.legend(fontsize=8)
    for panel, setting in zip(rest, shown, strict=True):
        for one in bests[setting]:
            panel.plot(one.compute, one.value, "x" if one.at_edge else "o", color="C0")
        if law_of := powers.get(setting):
            ends = [min(one.compute for one in bests[setting]), max(one.compute for one in bests[setting])]
            panel.plot(ends, [law_of.at(end) for end in ends], color="C1")
        panel.set(xscale="log", yscale="log", xlabel="compute C = 6 N D (FLOPs)", ylabel=f"best {setting} (x: at an edge)")
    figure.savefig(path, dpi=110)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and finite")
    return value


def add_parser(commands: Any) -> None:
    """The parser of `fit`."""
    command = add_command(
        commands,
        "fit",
        "Scaling laws from trained runs: loss by size and tokens, best learning rate and batch by compute; predictions.",
        "python -m evaluation fit runs/ablations/tiny/scaling/results.json --score eval/loss/docs --compute 1e15 --output laws",
    )
    command.add_argument("results", nargs="+", metavar="RESULTS", type=Path, help="results.json of ablate, or a .csv")
    command.add_argument(
        "--score", metavar="NAME", default="loss", help="of a results.json: which loss (default: the training loss)"
    )
    command.add_argument("--parameters", metavar="N", type=_positive, help="predict a run of so many, with --tokens")
    command.add_argument("--tokens", metavar="D", type=_positive, help="and of so many tokens")
    command.add_argument("--compute", metavar="C", type=_positive, help="predict the best use of so many FLOPs, such as 1e21")
    command.add_argument("--output", metavar="OUT_DIR", type=Path, required=True, help="a new folder: laws.json and laws.png")
    command.set_defaults(run=fit)
