"""Of what aggregation a score is, from lm-eval's task to interval and comparison: what is no mean has neither, and is named."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from evaluation_parts import COLOURS, Write, lines, record, run

from evaluation.__main__ import main
from evaluation.statistic import counts, resampled
from evaluation.suite import load_suite
from evaluation.tasks import load_tasks

OWN = """
def words(doc, results):
    return {"words": [True, doc["answer"] == 0, False], "best": float(doc["answer"] > 0), "mean": float(doc["answer"])}

def of_all(items):
    return sum(word for item in items for word in item) / sum(map(len, items))

def best(items):
    return max(items)

def mean(items):
    return sum(items) / len(items)
"""


def metric(name: str, aggregation: str, higher: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}


@pytest.fixture
def suite(tmp_path: Path, write_suite: Write, write_task: Write) -> Path:
    """Tasks with one score of each aggregation that lm-eval has for numbers, and of a task's own."""
    correlations = [metric("acc", "mean"), metric("mcc", "matthews_corrcoef"), metric("f1", "f1")]
    write_task("colours", [{**row, "answer": row["answer"] % 2} for row in COLOURS], metric_list=correlations)
    last = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{choices[0]}}"}
    write_task("last", COLOURS, **last, metric_list=[metric("perplexity", "perplexity", False), metric("acc", "mean")])
    texts = {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_text": "", "doc_to_target": "{{question}}"}
    rolling = [metric(f"{unit}_perplexity", "weighted_perplexity", False) for unit in ("word", "byte")]
    rolling.append(metric("bits_per_byte", "bits_per_byte", False))
    write_task("texts", COLOURS, **texts, metric_list=rolling)
    (tmp_path / "tasks" / "own.py").write_text(OWN)
    path = write_task("own", COLOURS, output_type="generate_until", doc_to_choice=None, metric_list=[])
    task = yaml.safe_load(path.read_text()) | {"generation_kwargs": {"max_gen_toks": 1, "until": ["\n"]}}
    del task["metric_list"]
    own = "".join(
        f"\n  - {{metric: {name}, aggregation: !function own.{function}, higher_is_better: true}}"
        for name, function in (("words", "of_all"), ("best", "best"), ("mean", "mean"))
    )
    path.write_text(f"{yaml.safe_dump(task)}process_results: !function own.words\nmetric_list:{own}\n")
    return write_suite([{"name": name} for name in ("colours", "last", "texts", "own")])


def test_intervals_are_of_the_aggregation_and_absent_where_it_is_no_statistic(
    plain_model: Path, tmp_path: Path, suite: Path
) -> None:
    assert run(plain_model, suite, tmp_path / "out") == 0
    made = record(tmp_path / "out")
    expected = {
        "eval/colours/acc": "mean",
        "eval/colours/gold_bits_per_byte": "bits",
        "eval/last/perplexity": "perplexity",
        "eval/texts/word_perplexity": "perplexity",
        "eval/texts/bits_per_byte": "bits",
        "eval/own/words": "share",
        "eval/own/mean": "mean",
    }
    assert expected.items() <= made["statistics"].items()
    for name in expected:
        low, high = made["intervals"][name]
        assert low <= made["results"][name] <= high, name
    without = {"eval/colours/mcc", "eval/colours/f1", "eval/own/best"}
    assert made["results"].keys() - made["intervals"].keys() == without == made["results"].keys() - made["statistics"].keys()
    of_words = [line["scores"]["words"] for line in lines(tmp_path / "out" / "samples" / "own.jsonl")]
    assert made["results"]["eval/own/words"] == pytest.approx(np.mean(of_words))


def test_what_cannot_be_compared_is_named_and_the_rest_compared(
    plain_model: Path, tmp_path: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert run(plain_model, suite, tmp_path / name) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "warning: not compared, a and b: eval/colours/mcc, eval/colours/f1, eval/own/best: " in said.err
    assert said.err.count("warning") == 1
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["not_compared"] == {"b": ["eval/colours/mcc", "eval/colours/f1", "eval/own/best"]}
    assert {"eval/own/words", "eval/last/perplexity"} < written["differences"]["b"].keys()


def test_a_perplexity_is_resampled_as_an_exponential() -> None:
    draws = resampled(counts([-1.0] * 50 + [-3.0] * 50, "perplexity"), "perplexity", 0)
    assert np.log(draws).mean() == pytest.approx(2, abs=0.02) and np.log(draws).std() == pytest.approx(0.1, rel=0.1)
    assert resampled(counts([(-6.0, 3)] * 4, "perplexity"), "perplexity", 0) == pytest.approx(math.e**2)


def test_lists_of_several_responses_are_one_list(plain_model: Path, suite: Path, write_suite: Write) -> None:
    sampled = {"do_sample": True, "temperature": 1.0}
    loaded = load_suite(write_suite([{"name": "own", "repeats": 2, "generation": sampled}]))
    ((one,), _) = load_tasks(loaded, loaded.tasks, plain_model)
    [task] = one.tasks
    expected = {"words": [True, False, False, True, False, False], "best": 1.0, "mean": 1.0}
    assert task.process_results({"answer": 1, "question": ""}, [["a", "b"]]) == expected
