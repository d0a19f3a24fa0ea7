"""The same questions answered by two models: how far apart they are, with an interval, and who wins how often.

    samples/TASK.jsonl of `run`, of one or several seeds a side  -->  aligned by question  -->  Difference

Pairing takes the difficulty of questions out of the noise: two checkpoints whose own intervals overlap widely differ beyond
doubt when the same questions gained (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640). A question is the row of the
task's data, however a model's template puts it, so that models with other tokenizers and templates are compared too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.results import RESAMPLES, read_samples

CHUNK = 50
"""Resamples at a time: their weights of 14,000 questions are then 6 MB."""

Question = tuple[Any, str]
"""Its number and the hash of its row."""


@dataclass(frozen=True)
class Answers:
    """What the seeds of one model scored, question by question; a score is the sum of `values` over the sum of `units`."""

    values: np.ndarray
    """[seeds, questions]; of ratios their numerators (log-likelihoods, whose score is bits per unit)."""
    units: np.ndarray
    """[questions]: 1, or bytes."""
    ratio: bool

    def score(self) -> float:
        """As results.json has it, a mean over the seeds."""
        seeds, questions = self.values.shape
        return float(self.resampled(np.ones((1, seeds)), np.ones((1, questions)))[0])

    def resampled(self, seeds: np.ndarray, questions: np.ndarray) -> np.ndarray:
        """The score under each pair of rows of weights, [n, seeds] and [n, questions]; [n]."""
        of_questions = (seeds / seeds.sum(axis=1, keepdims=True)) @ self.values
        found: np.ndarray = (of_questions * questions).sum(axis=1) / (questions @ self.units)
        return -found / math.log(2) if self.ratio else found


@dataclass(frozen=True)
class Difference:
    """Of one score: the other model's less the first one's."""

    first: float
    other: float
    interval: tuple[float, float]
    """95 % of `value`, over the choice of questions, and of seeds where a side has several."""
    win_rate: float
    """Share of questions where the other one is better; those where both score the same count half."""
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
    name: str, first: Sequence[Path], other: Sequence[Path], higher_is_better: bool, seed: int = 0
) -> Difference | None:
    """Of the score `name` (results.py) between two models, each the folders of `run` of its seeds.

    None where a folder has no samples of the score, or the two have no question in common.
    """
    read = [[_read(name, folder) for folder in side] for side in (first, other)]
    every = [found for side in read for found in side]
    shared = sorted(set.intersection(*(set(found) for found in every)), key=str)
    if not shared:
        return None
    one, two = (_answers(side, shared) for side in read)
    return Difference(one.score(), two.score(), _interval(one, two, seed), _win_rate(one, two, higher_is_better), len(shared))


def _read(name: str, folder: Path) -> dict[Question, Any]:
    """What each question scored; a number, or (log-likelihood, units)."""
    _, task, *mode, metric = name.split("/")
    path = folder / "samples" / f"{'_'.join([task, *mode])}.jsonl"
    found = {}
    for line in read_samples(path) if path.is_file() else []:
        for called, value in line["scores"].items():
            if metric in (called, f"{called}_{line['filter']}"):
                found[line["question"], line["question_sha256"]] = value
    return found


def _answers(side: Sequence[dict[Question, Any]], shared: Sequence[Question]) -> Answers:
    values = np.array([[found[question] for question in shared] for found in side], dtype=float)
    if values.ndim == 2:
        return Answers(values, np.ones(len(shared)), ratio=False)
    return Answers(values[..., 0], values[0, :, 1], ratio=True)


def _interval(one: Answers, two: Answers, seed: int) -> tuple[float, float]:
    """Percentile bootstrap: both sides get the same questions, each its own draw of its seeds."""
    draw = np.random.default_rng(seed)

    def weights(count: int, size: int) -> np.ndarray:
        return draw.multinomial(size, np.full(size, 1 / size), size=count).astype(float)

    found = []
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        questions = weights(count, len(one.units))
        before, after = (side.resampled(weights(count, len(side.values)), questions) for side in (one, two))
        found.append(after - before)
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


def _win_rate(one: Answers, two: Answers, higher_is_better: bool) -> float:
    """More log-likelihood is better, though fewer bits are."""
    signs = np.sign(two.values.mean(axis=0) - one.values.mean(axis=0))
    return float((signs * (1 if higher_is_better or one.ratio else -1) + 1).mean() / 2)
