"""From lm-eval's results to ours: names that TensorBoard can draw, intervals, chance, and what each question scored.

    OUT_DIR/results.json           scores, intervals, and everything that they depend on; its "results" is what a job of
                                   slurm/evaluations.py must write
    OUT_DIR/samples/TASK.jsonl     a line a question: response, target, scores, the prompt's hash
    OUT_DIR/depth_length_TASK.png  of tasks whose questions have a depth and a length (heat_map.py)

A score's name is eval/TASK/METRIC, or eval/TASK/MODE/METRIC through a chat template. Two metrics are added to every
multiple-choice task: acc_tokens, whose likelihoods are divided by the answers' tokens (lm-eval has characters, acc_norm, and
bytes, acc_bytes), and gold_bits_per_byte, the right answer's negative log-likelihood: it moves long before any accuracy does.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smol_console import table

RESAMPLES = 1000
"""Of questions, for an interval; its ends are then good to about a tenth of its width."""
UNIFORM_BYTE = 8.0
"""Bits per byte of a model that knows nothing: 256 bytes, all alike."""


class Scores(NamedTuple):
    """What one metric of one task came to."""

    metric: str
    """Its name alone; scores have the filter's name after it where a task has several."""
    value: float
    interval: tuple[float, float] | None
    """95 %, over the choice of questions, of a group's within each of its tasks; None where lm-eval's aggregation is neither a
    mean nor a ratio."""
    chance: float | None
    """Of a model that guesses; None where that is not known."""
    higher_is_better: bool


Samples = list[dict[str, Any]]
CountTokens = Callable[[str, str], int]
"""(context, continuation) -> tokens of the continuation."""


def without_reasoning(response: str) -> str:
    """What follows the last </think>; nothing where reasoning began and did not end."""
    if "</think>" in response:
        return response.rpartition("</think>")[2].strip()
    return "" if "<think>" in response else response


def score_name(task: str, mode: str, metric: str) -> str:
    """As results, and TensorBoard, have it."""
    return "/".join(["eval", task, *([] if mode == "base" else [mode]), metric])


def add_likelihood_metrics(samples: Samples, count_tokens: CountTokens) -> None:
    """acc_tokens and gold_bits_per_byte into the samples of a multiple-choice task with one right answer each."""
    for sample in samples:
        gold = sample["gold"]
        if not isinstance(gold, int) or "acc_mutual_info" in sample:  # which asks for each answer alone too
            continue
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        tokens = [count_tokens(*arguments) for arguments in sample["arguments"]]
        text = sample["arguments"][gold][1].encode()
        sample["acc_tokens"] = float(int(np.argmax(np.divide(likelihoods, tokens))) == gold)
        sample["gold_bits_per_byte"] = (likelihoods[gold], len(text))


def scores_of(
    samples: Samples, reported: Mapping[str, float], higher_is_better: Mapping[str, bool], seed: int
) -> dict[str, Scores]:
    """By metric: lm-eval's own value where there is one (`reported`, by metric and filter), its interval, its chance."""
    ours = {"acc_tokens": True, "gold_bits_per_byte": False}
    found: dict[str, Scores] = {}
    filters = sorted({sample["filter"] for sample in samples})
    for chosen in filters:
        rows = [sample for sample in samples if sample["filter"] == chosen]
        for metric, better in {**higher_is_better, **ours}.items():
            values = [row[metric] for row in rows if metric in row]
            if not values:
                continue
            value = reported.get(f"{metric},{chosen}")
            measured = value if isinstance(value, int | float) else float(_estimate(np.ones((1, len(values))), values)[0])
            name = metric if len(filters) == 1 else f"{metric}_{chosen}"
            found[name] = Scores(metric, float(measured), interval(values, seed), _chance(metric, rows), better)
    return found


def interval(values: Sequence[Any], seed: int) -> tuple[float, float] | None:
    """95 % percentile bootstrap over questions: of the mean of numbers, or of the bits per unit of (log-likelihood, units)."""
    draws = resampled(values, seed)
    return None if draws is None else ends(draws)


def resampled(values: Sequence[Any], seed: int | Sequence[int]) -> np.ndarray | None:
    """The metric of RESAMPLES draws of as many questions, with replacement; None for values of another kind."""
    try:
        drawn = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
        return _estimate(drawn, values)
    except (ValueError, TypeError):
        return None


def ends(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def _estimate(weights: np.ndarray, values: Sequence[Any]) -> np.ndarray:
    """A metric for each row of weights [n, questions]."""
    array = np.asarray(values, dtype=float)
    if array.ndim == 1:
        return weights @ array / weights.sum(axis=1)
    if array.shape[1:] != (2,):
        raise ValueError("neither numbers nor ratios")
    log_likelihoods, units = (weights @ array).T
    return -log_likelihoods / units / math.log(2)


def _chance(metric: str, rows: Samples) -> float | None:
    """Of accuracies, one over the number of choices; of bits per byte, a byte's; 0 where an answer is written out."""
    if metric == "bits_per_byte":
        return UNIFORM_BYTE
    if "gold" in rows[0]:
        return float(np.mean([1 / len(row["arguments"]) for row in rows])) if metric.startswith("acc") else None
    return 0.0 if isinstance(rows[0]["resps"][0][0], str) else None


# --- what is written -------------------------------------------------------------------------------------------------------


def prompts_sha256(samples: Samples) -> str:
    """One hash over all prompts of a task, in order: equal for equal questions, shots and templates."""
    return hashlib.sha256("".join(sample["prompt_hash"] for sample in samples).encode()).hexdigest()


def write_samples(path: Path, samples: Samples, metrics: Sequence[str]) -> None:
    """One line a question (and filter); "asked" is the question's text, where a judge shall read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8") as file:
        for sample in samples:
            line = {"question": sample["doc_id"], "question_sha256": sample["doc_hash"], "filter": sample["filter"]}
            line |= {"prompt_sha256": sample["prompt_hash"], "target": sample["target"]}
            line |= {"responses": sample["resps"], "scored": sample["filtered_resps"]}
            line |= {"scores": {metric: sample[metric] for metric in metrics if metric in sample}}
            line |= {"asked": sample["asked"]} if "asked" in sample else {}
            line |= {key: sample["doc"][key] for key in ("length", "depth", "turns") if key in sample["doc"]}
            file.write(json.dumps(line, default=str) + "\n")


def read_samples(path: Path) -> Samples:
    """The lines of a file of samples."""
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def result_table(record: Mapping[str, Any]) -> str:
    """The scores of a results.json, one a line, those without an interval or chance with a dash."""
    rows = []
    for name, value in record["results"].items():
        low_high, chance = record["intervals"].get(name), record["chance"].get(name)
        within = f"{low_high[0]:.4f} .. {low_high[1]:.4f}" if low_high else "-"
        rows.append([name, f"{value:.4f}", within, "-" if chance is None else f"{chance:.4f}"])
    return table(["score", "value", "95 %", "chance"], rows)
