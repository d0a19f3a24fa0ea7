"""From lm-eval's results to ours: names that TensorBoard can draw, intervals, chance, and what each question scored.

    OUT_DIR/results.json           scores, intervals, and everything that they depend on; its "results" is what a job of
                                   slurm/evaluations.py must write
    OUT_DIR/samples/TASK.jsonl     a line a question: response, target, scores, the prompt's hash
    OUT_DIR/depth_length_TASK.png  of tasks whose questions have a depth and a length (heat_map.py)

A score's name is eval/TASK/METRIC, or eval/TASK/MODE/METRIC through a chat template. Of every multiple-choice task the
likelihoods are compared by character (acc_norm), byte (acc_bytes) and token (acc_tokens), also where lm-eval's file of the
task lists none of them, and gold_bits_per_byte is the right answer's negative log-likelihood: it moves before any accuracy
does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.statistic import Statistic, counts, estimate, interval, statistic_of
from evaluation.suite import NAMED_METRICS
from smol_console import table

UNIFORM_BYTE = 8.0
"""Bits per byte of a model that knows nothing: 256 bytes, all alike."""


class Score(NamedTuple):
    """What one metric of one task, or of a group, came to."""

    metric: str
    """Its name alone; scores have the filter's name after it where a task has several."""
    chosen: str
    """The filter."""
    value: float
    interval: tuple[float, float] | None
    """95 %, over the choice of questions, of a group's within each of its tasks; None where there is no statistic."""
    chance: float | None
    """Of a model that guesses; None where that is not known."""
    higher_is_better: bool
    statistic: Statistic | None = None
    """None also of a group, whose tasks have theirs."""
    counted: np.ndarray | None = None
    """What the statistic is of, [questions, 2]."""


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
    """NAMED_METRICS into the samples of a multiple-choice task with one right answer each, but for what lm-eval has put there.

    Each has "gold", the right answer's place, and "answers", the texts by whose lengths likelihoods are divided.
    """
    for sample in samples:
        gold = sample["gold"]
        if not isinstance(gold, int) or "acc_mutual_info" in sample:  # which asks for each answer alone too
            continue
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        lengths = {
            "acc_norm": [len(answer) for answer in sample["answers"]],
            "acc_bytes": [len(answer.encode()) for answer in sample["answers"]],
            "acc_tokens": [count_tokens(*arguments) for arguments in sample["arguments"]],
        }
        for metric, sizes in lengths.items():
            if metric not in sample:
                sample[metric] = float(int(np.argmax(np.divide(likelihoods, sizes))) == gold)
        sample["gold_bits_per_byte"] = (likelihoods[gold], len(sample["arguments"][gold][1].encode()))


def scores_of(
    samples: Samples,
    reported: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    aggregations: Mapping[str, Callable[..., Any]],
    seed: int,
) -> dict[str, Score]:
    """By metric: lm-eval's own value where there is one (`reported`, by metric and filter), its interval, its chance."""
    better = {metric: metric != "gold_bits_per_byte" for metric in NAMED_METRICS}
    found: dict[str, Score] = {}
    filters = sorted({sample["filter"] for sample in samples})
    for chosen in filters:
        rows = [sample for sample in samples if sample["filter"] == chosen]
        for metric, higher in {**higher_is_better, **better}.items():
            if not (values := [row[metric] for row in rows if metric in row]):
                continue
            statistic: Statistic | None
            if (value := reported.get(f"{metric},{chosen}")) is None:  # of NAMED_METRICS
                statistic = "mean" if higher else "bits"
                value = float(estimate(counts(values, statistic).sum(axis=0), statistic))
            else:
                statistic = statistic_of(aggregations[metric], values, value)
            counted = counts(values, statistic) if statistic else None
            within = interval(values, statistic, seed) if statistic else None
            name = metric if len(filters) == 1 else f"{metric}_{chosen}"
            found[name] = Score(metric, chosen, float(value), within, _chance(metric, rows), higher, statistic, counted)
    return found


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
