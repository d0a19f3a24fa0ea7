"""How a score follows from what each question scored: as a function of a ratio of two sums, which is easily resampled.

    lm-eval's aggregation, values --statistic_of--> Statistic        values --counts--> [questions, 2] --interval--> 95 %

Scores that are no such function (F1, correlations, BLEU) have no statistic here: no interval, and no paired difference
(pairs.py). A number beside a wrong interval would be worse than one beside none.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

Statistic = Literal["mean", "share", "bits", "perplexity"]
"""mean: of numbers. share: of what is true in lists of true and false, a list a question. bits: negative, base 2, of pairs
(log-likelihood, units). perplexity: exp of the negative, of such pairs or of log-likelihoods alone."""
RESAMPLES = 1000
"""Of questions, for an interval; its ends are then good to about a tenth of its width."""
LOG_LIKELIHOODS: tuple[Statistic, ...] = ("bits", "perplexity")
"""Whose numerators are better when they are higher, though the score is better when it is lower."""

_LM_EVAL: dict[str, Statistic] = {
    "mean": "mean",
    "bits_per_byte": "bits",
    "perplexity": "perplexity",
    "weighted_perplexity": "perplexity",
}
"""By the name of the function in lm_eval.api.metrics."""


def statistic_of(aggregation: Callable[..., Any], values: Sequence[Any], reported: float) -> Statistic | None:
    """What lm-eval's aggregation of these values is; None for what is none of the statistics.

    A task's own function, such as IFEval's over instructions, is known by what it `reported` of the values: the mean of
    numbers, or the share of lists.
    """
    if aggregation.__module__ == "lm_eval.api.metrics":
        return _LM_EVAL.get(aggregation.__name__)
    guess: Statistic = "share" if isinstance(values[0], list) else "mean"
    try:
        found = estimate(counts(values, guess).sum(axis=0), guess)
    except (TypeError, ValueError):
        return None
    return guess if math.isclose(found, reported, rel_tol=1e-9, abs_tol=1e-12) else None


def counts(values: Sequence[Any], statistic: Statistic) -> np.ndarray:
    """Numerator and denominator of each question, [questions, 2]; TypeError and ValueError for values of another kind."""
    if statistic == "share":
        rows = [(sum(value), len(value)) for value in values]
    else:
        rows = [tuple(value) if isinstance(value, list | tuple) else (value, 1) for value in values]
    found = np.array(rows, dtype=float)
    if found.shape != (len(values), 2):
        raise ValueError("neither numbers nor pairs")
    return found


def estimate(sums: np.ndarray, statistic: Statistic) -> Any:
    """The score of summed counts [..., 2]."""
    ratio = sums[..., 0] / sums[..., 1]
    if statistic == "bits":
        return -ratio / math.log(2)
    return np.exp(-ratio) if statistic == "perplexity" else ratio


def resampled(counted: np.ndarray, statistic: Statistic, seed: int | Sequence[int]) -> np.ndarray:
    """The score of RESAMPLES draws of as many questions, with replacement."""
    size = len(counted)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return np.asarray(estimate(drawn @ counted, statistic))


def ends(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def interval(values: Sequence[Any], statistic: Statistic, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap over questions."""
    return ends(resampled(counts(values, statistic), statistic, seed))
