"""What lm-eval found of one entry of a suite, into the record of results.json and the files beside it.

    engine.py's results --results.py: scores, intervals, chance--> results.json, samples/, depth_length_TASK.png

A group's tasks are its parts, and `groups` says how much each of them weighs; what a judge has to score is noted as not run
(judge.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM

from evaluation import heat_map, results
from evaluation.results import Samples, Score
from evaluation.statistic import ends, resampled
from evaluation.suite import JUDGED, NAMED_METRICS
from evaluation.tasks import Loaded, gold

EMPTY: tuple[str, ...] = ("results", "intervals", "chance", "higher_is_better", "statistics", "groups", "parts", "tasks")
"""What of a record is filled here."""


def record_task(model: HFLM, loaded: Loaded, evaluated: Any, record: dict[str, Any], folder: Path, seed: int) -> None:
    """One entry of the suite: its scores, those of a group's tasks as parts, its samples and pictures."""
    groups = [root for root in loaded.roots if isinstance(root, Group)]
    in_group = {task.task_name for group in groups if group.has_aggregation for task in group.get_all_tasks()}
    found: dict[str, dict[str, Score]] = {}
    for task in loaded.tasks:
        name = task.task_name
        samples: Samples = evaluated["samples"][name]
        if task.OUTPUT_TYPE == "multiple_choice":
            for sample in samples:
                sample["gold"] = gold(task, sample["doc"])
                sample["answers"] = _answers(task, sample)
            results.add_likelihood_metrics(samples, lambda context, text: len(model._encode_pair(context, text)[1]))
        if loaded.asked.judge:
            for sample in samples:
                sample["asked"] = task.doc_to_text(sample["doc"])
        reported = evaluated["results"][name]
        found[name] = results.scores_of(samples, reported, task.higher_is_better(), task.aggregation(), seed)
        _add(record, "parts" if name in in_group else "results", name, loaded, found[name])
        label = name if loaded.mode == "base" else f"{name}_{loaded.mode}"
        path = folder / "samples" / f"{label}.jsonl"
        results.write_samples(path, samples, [*task.higher_is_better(), *NAMED_METRICS])
        heat_map.draw(results.read_samples(path), folder / f"depth_length_{label}.png")
        record["tasks"][label] = {
            "use": loaded.asked.use,
            "mode": loaded.mode,
            "version": task.VERSION,
            "questions": len({sample["doc_id"] for sample in samples}),
            "of": len(task.eval_docs),
            "shots": task.config.num_fewshot,
            "repeats": task.config.repeats,
            "generation": task.config.generation_kwargs,
            "truncated": _truncated(model, task, samples),
            "prompts_sha256": results.prompts_sha256(samples),
        }
        if loaded.asked.judge:  # who is asked when all of OUT_DIR is there
            record["tasks"][label]["judge"] = loaded.asked.judge.model_dump(mode="json")
            record["not_run"][f"{label} {JUDGED}"] = "not judged yet; python -m evaluation judge OUT_DIR"
    for number, group in enumerate(groups):
        _add_group(record, group, loaded, found, evaluated["results"], (seed, number))


def _answers(task: Task, sample: Mapping[str, Any]) -> list[str]:
    """The choices; where these stand in the question, the text that follows each of them."""
    if task.multiple_input:
        return [continuation.strip() for _, continuation in sample["arguments"]]
    return list(task.doc_to_choice(sample["doc"]))


def _add_group(
    record: dict[str, Any],
    group: Group,
    loaded: Loaded,
    found: Mapping[str, Mapping[str, Score]],
    reported: Mapping[str, Mapping[str, Any]],
    seed: tuple[int, ...],
) -> None:
    """The means over a group's tasks that lm-eval takes, those of NAMED_METRICS by the same weights, and how they are made up.

    Their intervals are those of the same means over what each task's resampled questions give.
    """
    if not group.has_aggregation:
        return
    by_size = {listed.metric: listed.weight_by_size for listed in group.aggregate_metric_list}
    names = [task.task_name for task in group.get_all_tasks()]
    for metric, chosen in dict.fromkeys((score.metric, score.chosen) for name in names for score in found[name].values()):
        keys = {name: key for name in names for key, one in found[name].items() if (one.metric, one.chosen) == (metric, chosen)}
        if f"{metric},{chosen}" not in reported[group.name] and (metric not in NAMED_METRICS or len(keys) < len(names)):
            continue
        is_weighted = by_size.get(metric, next(iter(by_size.values())))
        sizes = {name: reported[name]["sample_len"] if is_weighted else 1 for name in keys}
        key = next(iter(keys.values()))
        _add(record, "results", group.name, loaded, {key: _mean({name: found[name][keys[name]] for name in keys}, sizes, seed)})
        if (full := results.score_name(group.name, loaded.mode, key)) in record["results"]:
            parts = {results.score_name(name, loaded.mode, keys[name]): size for name, size in sizes.items()}
            record["groups"][full] = {part: size / sum(sizes.values()) for part, size in parts.items()}


def _mean(scores: Mapping[str, Score], sizes: Mapping[str, int], seed: tuple[int, ...]) -> Score:
    def mean(values: Mapping[str, Any]) -> Any:
        return sum(value * sizes[name] for name, value in values.items()) / sum(sizes.values())  # as lm-eval does

    # A seed of its own for each: the same one would draw the same places in all tasks, whose errors would then never cancel.
    draws = {
        name: resampled(score.counted, score.statistic, (*seed, number))
        for number, (name, score) in enumerate(scores.items())
        if score.statistic and score.counted is not None
    }
    one = next(iter(scores.values()))
    chances = {name: score.chance for name, score in scores.items()}
    return one._replace(
        value=mean({name: score.value for name, score in scores.items()}),
        interval=ends(mean(draws)) if len(draws) == len(scores) else None,
        chance=None if None in chances.values() else mean(chances),
        statistic=None,
        counted=None,
    )


def _truncated(model: HFLM, task: Task, samples: Samples) -> int:
    """Questions that the model did not read from their beginning, since they were too long: lm-eval only logs that."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":  # in windows, each token once
        return 0
    room = model.max_length
    if task.OUTPUT_TYPE == "generate_until":
        room -= task.config.generation_kwargs.get("max_gen_toks", model.max_gen_toks)
    texts = [["".join(part for part in each if isinstance(part, str)) for each in sample["arguments"]] for sample in samples]
    return sum(max(len(model.tok_encode(text)) for text in of_question) > room for of_question in texts)


def _add(record: dict[str, Any], where: str, name: str, loaded: Loaded, scores: Mapping[str, Score]) -> None:
    for metric, score in scores.items():
        if loaded.asked.metrics and score.metric not in loaded.asked.metrics:
            continue
        full = results.score_name(name, loaded.mode, metric)
        record[where][full] = score.value
        record["higher_is_better"][full] = score.higher_is_better
        if score.interval:
            record["intervals"][full] = score.interval
        if score.statistic:
            record["statistics"][full] = score.statistic
        if score.chance is not None:
            record["chance"][full] = score.chance
