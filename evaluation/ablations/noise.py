"""Is a change better than the baseline, worse, or within the noise of seeds?

The rule. A score has a spread s: the standard deviation over seeds within an arm, pooled over all arms that have several,

    s^2 = sum over arms and their seeds of (score - mean of the arm)^2 / nu,     nu = sum over arms of (seeds - 1),

which is the baseline's own standard deviation where only the baseline was repeated. The difference between the mean of m seeds
of a change and the mean of k seeds of the baseline has, were the change none, the standard error s sqrt(1/m + 1/k). The band
is that times Student's t at 97.5 % with nu degrees of freedom: arms that differ in nothing but their seeds fall outside it once
in twenty times. Within the band is "within noise"; outside it the sign says better or worse.

This is the t-test of a one-way analysis of variance (Student 1908, "The Probable Error of a Mean"; Fisher 1925, "Statistical
Methods for Research Workers"), which takes arms to have the same spread. That seeds have to be repeated at all is the finding
of Madaan et al. 2024, "Quantifying Variance in Evaluation Benchmarks" (arXiv 2406.10229). With few seeds t is large (4.3 for
three seeds of the baseline and one of the change, 12.7 for two): a small difference then stays undecided, as it is. Nothing is
corrected for the number of comparisons; the report says how many are to be expected outside by chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "within noise", "noise unknown"]

CONFIDENCE = 0.95
"""Of the band, two-sided."""

ScoresByArm = Mapping[str, Sequence[float]]
"""One score of every arm's finished runs."""


@dataclass(frozen=True)
class Comparison:
    """One score of a change against the baseline."""

    baseline: float
    change: float
    """Means over seeds."""
    band: float | None
    """Half the width of what seeds alone do to the difference; None: no arm has two seeds."""
    verdict: Verdict

    @property
    def difference(self) -> float:
        """Change less baseline."""
        return self.change - self.baseline


def spread(scores: ScoresByArm) -> tuple[float | None, int]:
    """(s, nu) of the rule above; (None, 0) where no arm has several seeds."""
    squares, freedom = 0.0, 0
    for values in scores.values():
        if values:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (None, 0)


def compare(scores: ScoresByArm, baseline: str, change: str, higher_is_better: bool) -> Comparison | None:
    """`change` against `baseline`; None where one of them has no finished run with the score."""
    ours, theirs = scores.get(change, ()), scores.get(baseline, ())
    if not ours or not theirs:
        return None
    means = math.fsum(theirs) / len(theirs), math.fsum(ours) / len(ours)
    deviation, freedom = spread(scores)
    if deviation is None:
        return Comparison(*means, None, "noise unknown")
    from scipy.stats import t

    band = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * deviation * math.sqrt(1 / len(ours) + 1 / len(theirs))
    difference = means[1] - means[0]
    if abs(difference) <= band:
        return Comparison(*means, band, "within noise")
    return Comparison(*means, band, "better" if (difference > 0) == higher_is_better else "worse")
