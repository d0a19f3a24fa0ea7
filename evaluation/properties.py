"""Is a task fit to decide by? Four properties of each score, over the checkpoints of runs.

    OUT_DIRs of `run`, a checkpoint each, below a folder a run  -->  Runs  -->  Verdict of each score

properties_report.py is the command.

After FineTasks (Hugging Face, 2024) and the Smol Training Playbook, which choose tasks for ablations so:

  monotone         Spearman's correlation of score and step, a run's mean; 1: each checkpoint is better than the one before
  low noise        how often what the score gained, from the first checkpoint to the last, holds its noise
  above chance     how often what the last score is better than guessing by holds its noise
  stable ranking   Kendall's tau of the models' order at one step and the next, a mean; 1: who leads early leads late

Noise is the standard deviation over seeds at each step, as a root mean square, where a model has runs of several seeds. With
one run it is what remains at the last checkpoint from the choice of questions alone, a quarter of the interval: less than
the noise of seeds, and the table says so. Gains and noise are of one direction: a score where lower is better is turned round.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smol_config import UserError

MONOTONE, GAIN, CHANCE, RANKING = 0.5, 3.0, 3.0, 0.7
"""What a score must reach. Of 0.5 and of 3 deviations FineTasks chose its tasks; for rankings it set no bound."""
PROPERTIES = ("monotone", "low noise", "above chance", "stable ranking")


@dataclass(frozen=True)
class Curve:
    """One score of one run over its checkpoints; lower-is-better scores are turned round by `sign`."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Verdict:
    """A score's four properties; None where they cannot be measured."""

    monotone: float | None
    low_noise: float | None
    above_chance: float | None
    stable_ranking: float | None
    noise: float | None
    seeds: bool
    """Whether the noise is over seeds."""

    def passes(self) -> list[bool | None]:
        """Of each property."""
        bounds = (MONOTONE, GAIN, CHANCE, RANKING)
        found = (self.monotone, self.low_noise, self.above_chance, self.stable_ranking)
        return [None if value is None else value >= bound for value, bound in zip(found, bounds, strict=True)]


Runs = dict[str, list[dict[int, dict[str, Any]]]]
"""By model, its runs, each the records of results.json by step."""


def read_runs(given: Sequence[str]) -> Runs:
    """The runs of [MODEL=]FOLDER arguments; several folders of one model are its seeds.

    Raises UserError for a folder without results, results without a step, and two of one step.
    """
    runs: Runs = defaultdict(list)
    for text in given:
        model, equals, name = text.rpartition("=")
        folder = Path(name)
        records: dict[int, dict[str, Any]] = {}
        for path in sorted(folder.rglob("results.json")):
            record = json.loads(path.read_text(encoding="utf8"))
            if record.get("step") is None:
                raise UserError(f"{path} says no step; score checkpoints whose folder says it, such as step_1000")
            if record["step"] in records:
                raise UserError(f"{folder} has two results of step {record['step']}; give each run a folder of its own")
            records[record["step"]] = record | {"folder": str(path.parent)}
        if len(records) < 2:
            raise UserError(f"{folder} has results of {len(records)} checkpoints; two are needed (python -m evaluation run)")
        runs[model if equals else folder.name].append(dict(sorted(records.items())))
    return dict(runs)


def judge(name: str, runs: Runs) -> Verdict:
    """The properties of the score `name` (results.py) over the runs that have it."""
    curves = {model: [curve_of(name, records) for records in of_model] for model, of_model in runs.items()}
    every = [curve for of_model in curves.values() for curve in of_model if len(curve.steps) > 1]
    first = next(record for of_model in runs.values() for records in of_model for record in records.values())
    sign = 1 if first["higher_is_better"].get(name, True) else -1
    noise, seeds = _noise(name, runs, curves)
    gains = [sign * (curve.values[-1] - curve.values[0]) for curve in every]
    chance = first["chance"].get(name)
    over = [sign * (curve.values[-1] - chance) for curve in every] if chance is not None else []
    rises = [rank_correlation(curve.steps, [sign * value for value in curve.values]) for curve in every]
    return Verdict(
        monotone=_mean(rises),
        low_noise=_mean(gains) / noise if noise else None,
        above_chance=_mean(over) / noise if noise and over else None,
        stable_ranking=_ranking(curves),
        noise=noise,
        seeds=seeds,
    )


def curve_of(name: str, records: Mapping[int, dict[str, Any]]) -> Curve:
    have = {step: record["results"][name] for step, record in records.items() if name in record["results"]}
    return Curve(list(have), list(have.values()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _noise(name: str, runs: Runs, curves: Mapping[str, Sequence[Curve]]) -> tuple[float | None, bool]:
    """(standard deviation, whether it is over seeds)."""
    variances = []
    for of_model in curves.values():
        at_step = defaultdict(list)
        for curve in of_model:
            for step, value in zip(curve.steps, curve.values, strict=True):
                at_step[step].append(value)
        variances += [float(np.var(values, ddof=1)) for values in at_step.values() if len(values) > 1]
    if variances:
        return math.sqrt(_mean(variances)), True
    last = [list(records.values())[-1]["intervals"].get(name) for of_model in runs.values() for records in of_model]
    widths = [(high - low) / 4 for low, high in filter(None, last)]  # 95 % is four deviations wide
    return (_mean(widths) if widths else None), False


def _ranking(curves: Mapping[str, Sequence[Curve]]) -> float | None:
    """Mean over neighbouring steps of Kendall's tau between the models' orders; a model is the mean of its seeds."""
    means: dict[int, dict[str, float]] = defaultdict(dict)
    for model, of_model in curves.items():
        for step in {step for curve in of_model for step in curve.steps}:
            means[step][model] = _mean([c.values[c.steps.index(step)] for c in of_model if step in c.steps])
    steps = [step for step in sorted(means) if len(means[step]) == len(curves)]
    if len(curves) < 2 or len(steps) < 2:
        return None
    return _mean([_kendall([means[a][m] for m in curves], [means[b][m] for m in curves]) for a, b in itertools.pairwise(steps)])


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, ties sharing their mean rank; 0 where one side is constant."""
    ranks = [
        np.array([(np.sum(np.less(x, v)) + np.sum(np.less_equal(x, v)) - 1) / 2 for v in x]) for x in map(np.asarray, (a, b))
    ]
    spread = float(np.std(ranks[0]) * np.std(ranks[1]))
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / spread) if spread else 0.0


def _kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Tau-a."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    return _mean([float(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])) for i, j in pairs])
