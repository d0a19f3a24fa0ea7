"""The same questions answered by two models: how far apart they are, with an interval, and who wins how often.

    samples/TASK.jsonl of `run`, of one or several seeds a side  -->  aligned by question  -->  Difference

Pairing takes the difficulty of questions out of the noise: two checkpoints whose own intervals overlap widely differ beyond
doubt when the same questions gained (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640). A question is the row of the
task's data, however a model's template puts it, so that models with other tokenizers and templates are compared too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.results import read_samples
from evaluation.statistic import LOG_LIKELIHOODS, RESAMPLES, Statistic, counts, ends, estimate

CHUNK = 50
"""Resamples at a time: their weights of 14,000 questions are then 6 MB."""

Question = tuple[Any, str]
"""Its number and the hash of its row."""


@dataclass(frozen=True)
class Answers:
    """What the seeds of one model scored in one task, question by question."""

    counted: np.ndarray
    """[2, seeds, questions]: numerators and denominators of the statistic."""
    statistic: Statistic

    def score(self) -> float:
        """As results.json has it, a mean over the seeds."""
        _, seeds, questions = self.counted.shape
        return float(self.resampled(np.ones((1, seeds)), np.ones((1, questions)))[0])

    def resampled(self, seeds: np.ndarray, questions: np.ndarray) -> np.ndarray:
        """The score under each pair of rows of weights, [n, seeds] and [n, questions]; [n]."""
        of_questions = (seeds / seeds.sum(axis=1, keepdims=True)) @ self.counted
        return np.asarray(estimate((of_questions * questions).sum(axis=-1).T, self.statistic))


Side = Mapping[str, Answers]
"""One model's answers in each of the tasks that a score is the weighted mean of; of most scores it is one task."""


@dataclass(frozen=True)
class Difference:
    """Of one score: the other model's less the first one's."""

    first: float
    other: float
    interval: tuple[float, float]
    """95 % of `value`, over the choice of questions (of a group's within each of its tasks), and of seeds where a side has
    several."""
    win_rate: float
    """Share of questions where the other one is better; those where both score the same count half. Of a group the mean of its
    tasks', weighted as its score is."""
    questions: int

    @property
    def value(self) -> float:
        """Other less first, in the score's unit."""
        return self.other - self.first

    def said(self, higher_is_better: bool) -> str:
        """better, worse, or same where the interval holds 0."""
        low, high = self.interval
        if low <= 0 <= high:
            return "same"
        return "better" if (low > 0) == higher_is_better else "worse"


def difference(
    name: str, first: Sequence[Path], other: Sequence[Path], higher_is_better: bool, seed: int = 0, paired_seeds: bool = False
) -> Difference | None:
    """Of the score `name` (results.py) between two models, each the folders of `run` of its seeds.

    `paired_seeds`: each of `other` was made from the one of `first` at its place, as a stage of training makes a model from a
    model; the interval is then of what was done to them, and how far seeds lie apart is no part of it.

    None where a folder has no samples of the score, where the two have no question in common, and where the score is no
    statistic (statistic.py) of what questions scored.
    """
    records = {folder: json.loads((folder / "results.json").read_text(encoding="utf8")) for folder in [*first, *other]}
    weights: dict[str, float] = records[first[0]].get("groups", {}).get(name, {name: 1.0})
    one: dict[str, Answers] = {}
    two: dict[str, Answers] = {}
    for part in weights:
        statistics = {record.get("statistics", {}).get(part) for record in records.values()}
        if len(statistics) > 1 or (statistic := statistics.pop()) is None:
            return None
        sides = [[_read(part, folder, statistic) for folder in side] for side in (first, other)]
        shared = sorted(set.intersection(*(set(found) for side in sides for found in side)), key=str)
        if not shared:
            return None
        one[part], two[part] = (
            Answers(np.moveaxis(np.array([[found[question] for question in shared] for found in side]), -1, 0), statistic)
            for side in sides
        )
    return Difference(
        first=sum(weight * one[part].score() for part, weight in weights.items()),
        other=sum(weight * two[part].score() for part, weight in weights.items()),
        interval=_interval(one, two, weights, seed, paired_seeds),
        win_rate=sum(weight * _win_rate(one[part], two[part], higher_is_better) for part, weight in weights.items()),
        questions=sum(answers.counted.shape[-1] for answers in one.values()),
    )


def _read(name: str, folder: Path, statistic: Statistic) -> dict[Question, np.ndarray]:
    """What each question scored: numerator and denominator, [2]."""
    _, task, *mode, metric = name.split("/")
    path = folder / "samples" / f"{'_'.join([task, *mode])}.jsonl"
    found = {}
    for line in read_samples(path) if path.is_file() else []:
        for called, value in line["scores"].items():
            if metric in (called, f"{called}_{line['filter']}"):
                found[line["question"], line["question_sha256"]] = value
    return dict(zip(found, counts(list(found.values()), statistic), strict=True)) if found else {}


def _interval(one: Side, two: Side, of_tasks: Mapping[str, float], seed: int, paired_seeds: bool) -> tuple[float, float]:
    """Percentile bootstrap: both sides get the same questions of each task, and each its own draw of its seeds, or the same."""
    draw = np.random.default_rng(seed)

    def weights(count: int, size: int) -> np.ndarray:
        return draw.multinomial(size, np.full(size, 1 / size), size=count).astype(float)

    found = []
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        questions = {part: weights(count, answers.counted.shape[-1]) for part, answers in one.items()}
        sums: list[np.ndarray] = []
        for side in (one, two):
            if not (paired_seeds and sums):
                seeds = weights(count, next(iter(side.values())).counted.shape[1])  # of a seed all tasks
            parts = [of_tasks[part] * answers.resampled(seeds, questions[part]) for part, answers in side.items()]
            sums.append(np.sum(parts, axis=0))
        found.append(sums[1] - sums[0])
    return ends(np.concatenate(found))


def _win_rate(one: Answers, two: Answers, higher_is_better: bool) -> float:
    """More log-likelihood is better, though fewer bits are."""
    signs = np.sign(two.counted[0].mean(axis=0) - one.counted[0].mean(axis=0))
    return float((signs * (1 if higher_is_better or one.statistic in LOG_LIKELIHOODS else -1) + 1).mean() / 2)
