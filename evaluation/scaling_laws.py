"""Scaling laws: loss from parameters N and tokens D, best learning rate and batch from compute C. Formulas and fits, no files.

    loss           L(N, D) = E + A / N^alpha + B / D^beta        Hoffmann et al. 2022, "Training Compute-Optimal Large Language
                   Models" (arXiv 2203.15556), section 3.3
    allocation     C = 6 N D; the least loss is at N = G (C / 6)^a, D = (C / 6)^b / G, with a = beta / (alpha + beta),
                   b = alpha / (alpha + beta), G = (alpha A / (beta B))^(1 / (alpha + beta)); there, equation 4
    power laws     value = k C^p for the best learning rate and batch, as in DeepSeek LLM (arXiv 2401.02954), section 3.1

The loss is fitted as there: the sum of Huber losses (delta 1e-3) of log L - log-sum-exp(a - alpha log N, b - beta log D, e), by
L-BFGS from a grid of starts. Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt" (arXiv 2404.10102), found that
the original had taken the mean instead of the sum, whose small gradients stopped the optimizer early, and intervals far too
narrow: here the sum is taken, and intervals are of fits to resampled runs, each begun where the first fit ended.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DELTA = 1e-3
"""Where Huber's loss turns from square to absolute, in log loss (Hoffmann et al.)."""
STARTS = {"a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), "e": (-1.0, -0.5, 0.0, 0.5, 1.0), "exponent": (0.0, 0.5, 1.0, 1.5, 2.0)}
"""The grid of starts (Hoffmann et al., appendix D.3): of a and b, of e, of alpha and beta."""
EXPONENTS = (0.01, 10.0)
"""Between which alpha and beta are sought: the loss falls with size and with tokens. Where it hardly does, the search would
have no end."""
TERMS = (-10.0, 1.0)
"""Between which the logarithms of E, A / N^alpha and B / D^beta are sought, less that of the mean loss, in the middle of the
runs: the least is nothing beside the loss. With both bounds everything that follows from a law is a number."""
TRIED = 40
"""Of the 4,500 starts, those of least loss from which the optimizer is run."""
RESAMPLES = 200
"""Of runs, for an interval; its ends are then good to about a fifth of its width."""
SIZES, LENGTHS, RUNS = 3, 3, 6
"""Least numbers of distinct N and D and of runs: two of each leave the exponents open, and five numbers are fitted."""


class Point(NamedTuple):
    """One run that was trained to its end."""

    parameters: float
    tokens: float
    loss: float
    """Nats per token."""
    learning_rate: float | None = None
    batch_tokens: float | None = None

    @property
    def compute(self) -> float:
        """FLOPs by the rule 6 N D."""
        return 6 * self.parameters * self.tokens


class LossLaw(NamedTuple):
    """L = E + A / N^alpha + B / D^beta."""

    irreducible: float
    """E, nats."""
    a: float
    """A."""
    b: float
    """B."""
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token."""
        return self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def allocation(self, compute: float) -> tuple[float, float]:
        """(N, D) of the least loss that `compute` FLOPs buy."""
        total = self.alpha + self.beta
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / total)
        return ratio * (compute / 6) ** (self.beta / total), (compute / 6) ** (self.alpha / total) / ratio


class PowerLaw(NamedTuple):
    """value = coefficient * C^exponent."""

    coefficient: float
    exponent: float
    exponent_interval: tuple[float, float] | None = None
    """95 %, by Student's t over the scatter of the bests; None with two computes, whose line goes through both."""

    def at(self, compute: float) -> float:
        """The value at `compute` FLOPs."""
        return float(self.coefficient * compute**self.exponent)


class Best(NamedTuple):
    """The best setting at one compute, from runs that differ in it."""

    compute: float
    value: float
    at_edge: bool
    """The lowest loss was that of the smallest or largest value tried: the best may lie beyond, and no law is fitted on it."""


# --- loss ------------------------------------------------------------------------------------------------------------------


def identifiable(points: Sequence[Point]) -> str:
    """Why no loss law can be fitted on the points, or nothing."""
    sizes, lengths = ({getattr(point, name) for point in points} for name in ("parameters", "tokens"))
    if len(points) >= RUNS and len(sizes) >= SIZES and len(lengths) >= LENGTHS:
        return ""
    have = f"{len(points)} runs of {len(sizes)} sizes and {len(lengths)} lengths"
    return f"{have} do not fix a loss law; train at least {RUNS} of {SIZES} sizes and {LENGTHS} lengths"


def fit_loss(points: Sequence[Point]) -> LossLaw:
    """The law of the points, on which identifiable() must have nothing to say."""
    objective = _objective(points)
    grid = STARTS["a"], STARTS["a"], STARTS["e"], STARTS["exponent"], STARTS["exponent"]
    starts = sorted((np.array(start) for start in itertools.product(*grid)), key=lambda start: objective(start)[0])
    fits = [_minimize(objective, start, points) for start in starts[:TRIED]]
    return _law(min(fits, key=lambda fit: fit[1])[0])


def resampled_laws(points: Sequence[Point], law: LossLaw, seed: int = 0) -> list[LossLaw]:
    """Laws of RESAMPLES draws of the points with replacement, for percentile intervals of anything that follows from a law."""
    random = np.random.default_rng(seed)
    laws: list[LossLaw] = []
    start = np.array([math.log(law.a), math.log(law.b), math.log(law.irreducible), law.alpha, law.beta])
    while len(laws) < RESAMPLES:
        drawn = [points[at] for at in random.integers(len(points), size=len(points))]
        if len({one.parameters for one in drawn}) > 1 and len({one.tokens for one in drawn}) > 1:
            laws.append(_law(_minimize(_objective(drawn), start, drawn)[0]))
    return laws


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval."""
    low, high = np.percentile(np.asarray(values, dtype=float), (2.5, 97.5))
    return float(low), float(high)


Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _objective(points: Sequence[Point]) -> Objective:
    """(a, b, e, alpha, beta) -> (sum of Huber losses, its gradient)."""
    log_n, log_d, log_loss = (np.log([getattr(point, name) for point in points]) for name in ("parameters", "tokens", "loss"))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        top = terms.max(axis=0)
        weights = np.exp(terms - top)
        sums = weights.sum(axis=0)
        residual = top + np.log(sums) - log_loss
        shares = weights / sums
        small = np.abs(residual) <= DELTA
        value = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).sum()
        slope = np.where(small, residual, DELTA * np.sign(residual))
        by_term = shares * slope
        gradient = [*by_term.sum(axis=1), -(by_term[0] * log_n).sum(), -(by_term[1] * log_d).sum()]
        return float(value), np.array(gradient)

    return objective


def _minimize(objective: Objective, start: np.ndarray, points: Sequence[Point]) -> tuple[np.ndarray, float]:
    """L-BFGS in a and b as they are in the middle of the runs: there they hardly depend on alpha and beta, which takes a tenth
    of the steps."""
    from scipy.optimize import minimize

    middle = [np.log([getattr(one, name) for one in points]).mean() for name in ("parameters", "tokens", "loss")]
    moved = np.eye(5)  # theta = moved @ what is searched
    moved[0, 3], moved[1, 4] = middle[:2]

    def searched(inner: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(moved @ inner)
        # About 1e-6 where the fit is good: at its own scale the search would end before it has begun.
        return value / DELTA**2, moved.T @ gradient / DELTA**2

    bounds = [(middle[2] + TERMS[0], middle[2] + TERMS[1])] * 3 + [EXPONENTS] * 2
    options = {"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-6}
    done = minimize(searched, np.linalg.solve(moved, start), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return moved @ done.x, float(done.fun)


def _law(theta: np.ndarray) -> LossLaw:
    a, b, e, alpha, beta = map(float, theta)
    return LossLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


# --- settings --------------------------------------------------------------------------------------------------------------


def best_settings(points: Sequence[Point], setting: str) -> list[Best]:
    """The best `setting` (learning_rate, batch_tokens) of every compute at which three values or more of it were tried.

    It is the lowest point of the parabola, in the setting's logarithm, through the best loss at the lowest value and at its two
    neighbours. Runs belong together when parameters and tokens agree to 2 %: a step's tokens do not divide every length.
    """
    groups: list[list[Point]] = []
    for point in sorted(points):
        first = groups[-1][0] if groups else None
        together = first and math.isclose(first.parameters, point.parameters, rel_tol=0.02)
        if together and first and math.isclose(first.tokens, point.tokens, rel_tol=0.02):
            groups[-1].append(point)
        else:
            groups.append([point])
    return [best for group in groups if (best := _best(group, setting))]


def _best(group: Sequence[Point], setting: str) -> Best | None:
    lowest: dict[float, float] = {}
    for point in group:
        if (value := getattr(point, setting)) is not None:
            lowest[value] = min(point.loss, lowest.get(value, math.inf))
    if len(lowest) < 3:
        return None
    values = sorted(lowest)
    at = min(range(len(values)), key=lambda index: lowest[values[index]])
    compute = math.exp(sum(math.log(point.compute) for point in group) / len(group))
    if at in (0, len(values) - 1):
        return Best(compute, values[at], at_edge=True)
    around = values[at - 1 : at + 2]
    square, slope, _ = np.polyfit(np.log(around), [lowest[value] for value in around], 2)
    return Best(compute, float(np.exp(-slope / (2 * square))), at_edge=False)


def fit_power(best: Sequence[Best]) -> PowerLaw | None:
    """Least squares in logarithms over the bests that are not at an edge; None with fewer than two computes."""
    inside = [one for one in best if not one.at_edge]
    if len({one.compute for one in inside}) < 2:
        return None
    from scipy.stats import linregress, t

    line = linregress(np.log([one.compute for one in inside]), np.log([one.value for one in inside]))
    free = len(inside) - 2
    half = float(t.ppf(0.975, free) * line.stderr) if free else None
    exponent = float(line.slope)
    return PowerLaw(math.exp(line.intercept), exponent, None if half is None else (exponent - half, exponent + half))
