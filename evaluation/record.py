"""What lm-eval found of one entry of a suite, into the record of results.json and the files beside it.

    engine.py's results --results.py: scores, intervals, chance--> results.json, samples/, depth_length_TASK.png

A group's tasks are its parts; what a judge has to score is noted as not run (judge.py).
"""

from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM

from evaluation import heat_map, results
from evaluation.results import Samples, Scores
from evaluation.suite import JUDGED, NAMED_METRICS
from evaluation.tasks import Loaded, gold


def record_task(model: HFLM, loaded: Loaded, evaluated: Any, record: dict[str, Any], folder: Path, seed: int) -> None:
    """One entry of the suite: its scores, those of a group's tasks as parts, its samples and pictures."""
    groups = [root for root in loaded.roots if isinstance(root, Group)]
    in_group = {task.task_name for group in groups if group.has_aggregation for task in group.get_all_tasks()}
    for task in loaded.tasks:
        name = task.task_name
        samples: Samples = evaluated["samples"][name]
        if task.OUTPUT_TYPE == "multiple_choice":
            for sample in samples:
                sample["gold"] = gold(task, sample["doc"])
            results.add_likelihood_metrics(samples, lambda context, text: len(model._encode_pair(context, text)[1]))
        if loaded.asked.judge:
            for sample in samples:
                sample["asked"] = task.doc_to_text(sample["doc"])
        scores = results.scores_of(samples, evaluated["results"][name], task.higher_is_better(), seed)
        _add(record, "parts" if name in in_group else "results", name, loaded, scores)
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
        _add(record, "results", group.name, loaded, _group_scores(group, evaluated, (seed, number)))


def _group_scores(group: Group, evaluated: Any, seed: tuple[int, ...]) -> dict[str, Scores]:
    """lm-eval's means over a group's tasks, and intervals: the same means over what each task's resampled questions give."""
    drawn: dict[str, Any] = {}
    without = set()
    for number, task in enumerate(group.get_all_tasks()):
        reported, samples = evaluated["results"][task.task_name], evaluated["samples"][task.task_name]
        drawn[task.task_name] = {"sample_len": reported["sample_len"]}
        for key in (key for key in reported if "," in key and "_stderr" not in key):
            metric, _, chosen = key.partition(",")
            values = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample]
            # A seed of its own: the same one would draw the same places in all tasks, whose errors would then never cancel.
            draws = results.resampled(values, (*seed, number))
            if draws is None:
                without.add(key)
            else:
                drawn[task.task_name][key] = draws
    means = group.aggregate(drawn)
    scores = {}
    found = {key: value for key, value in evaluated["results"][group.name].items() if "," in key and isinstance(value, float)}
    better = evaluated["higher_is_better"].get(group.name, {})
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        alone = sum(other.partition(",")[0] == metric for other in found) == 1
        interval = None if key in without else results.ends(means[key])
        scores[metric if alone else f"{metric}_{chosen}"] = Scores(metric, value, interval, None, better.get(metric, True))
    return scores


def _truncated(model: HFLM, task: Task, samples: Samples) -> int:
    """Questions that the model did not read from their beginning, since they were too long: lm-eval only logs that."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":  # in windows, each token once
        return 0
    room = model.max_length
    if task.OUTPUT_TYPE == "generate_until":
        room -= task.config.generation_kwargs.get("max_gen_toks", model.max_gen_toks)
    texts = [["".join(part for part in each if isinstance(part, str)) for each in sample["arguments"]] for sample in samples]
    return sum(max(len(model.tok_encode(text)) for text in of_question) > room for of_question in texts)


def _add(record: dict[str, Any], where: str, name: str, loaded: Loaded, scores: dict[str, Scores]) -> None:
    for metric, score in scores.items():
        if loaded.asked.metrics and score.metric not in loaded.asked.metrics:
            continue
        full = results.score_name(name, loaded.mode, metric)
        record[where][full] = score.value
        record["higher_is_better"][full] = score.higher_is_better
        if score.interval:
            record["intervals"][full] = score.interval
        if score.chance is not None:
            record["chance"][full] = score.chance
