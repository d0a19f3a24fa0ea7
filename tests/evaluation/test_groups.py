"""Groups of tasks: lm-eval's means over them, ours by the same weights, intervals, and paired differences within each task."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import COLOURS, Write, record, run

from evaluation.__main__ import main
from evaluation.suite import NAMED_METRICS


def test_groups_have_their_own_score_and_their_tasks_as_parts(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    for name in ("colours", "again"):
        write_task(name, COLOURS)
    (tmp_path / "tasks" / "both.yaml").write_text(
        "group: both\ntask: [colours, again]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    assert run(plain_model, write_suite([{"name": "both"}]), tmp_path / "out") == 0
    made = record(tmp_path / "out")
    assert made["results"].keys() == {f"eval/both/{name}" for name in ("acc", *NAMED_METRICS)}
    assert made["results"]["eval/both/acc"] == made["parts"]["eval/colours/acc"] == made["parts"]["eval/again/acc"]


def test_a_groups_interval_is_that_of_the_mean_over_its_tasks(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    rows = [{**row, "question": f"{number}: {row['question']}"} for number in range(15) for row in COLOURS]
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    for name, size in (("many", 120), ("again", 120), ("few", 30)):
        write_task(name, rows[:size], metric_list=metrics)
    (tmp_path / "tasks" / "all.yaml").write_text(
        "group: all\ntask: [many, again, few]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}, {metric: acc_norm, weight_by_size: false}]\n"
    )
    assert run(plain_model, write_suite([{"name": "all"}]), tmp_path / "out") == 0
    made = record(tmp_path / "out")

    def width(name: str) -> float:
        low, high = made["intervals"][f"eval/{name}"]
        return float(high - low)

    for metric, weights in (("acc", (120, 120, 30)), ("acc_norm", (1, 1, 1))):
        parts = [weight * width(f"{name}/{metric}") for weight, name in zip(weights, ("many", "again", "few"), strict=True)]
        # Errors of tasks are independent. 1,000 draws give a width to about 5 %, and 30 questions come in steps of 1/30.
        assert width(f"all/{metric}") == pytest.approx(np.sqrt(np.square(parts).sum()) / sum(weights), rel=0.15)
        assert made["intervals"][f"eval/all/{metric}"][0] < made["results"][f"eval/all/{metric}"]


def test_metrics_that_a_group_does_not_list_are_weighted_as_those_that_it_lists(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    write_task("colours", COLOURS)
    write_task("few", COLOURS[:2])
    for by_size, weights in (("true", (0.8, 0.2)), ("false", (0.5, 0.5))):
        group = f"group: both\ntask: [colours, few]\naggregate_metric_list: [{{metric: acc, weight_by_size: {by_size}}}]\n"
        (tmp_path / "tasks" / "both.yaml").write_text(group)
        assert run(plain_model, write_suite([{"name": "both"}]), tmp_path / by_size) == 0
        made = record(tmp_path / by_size)
        for metric in ("acc", *NAMED_METRICS):
            parts = [f"eval/colours/{metric}", f"eval/few/{metric}"]
            assert made["groups"][f"eval/both/{metric}"] == dict(zip(parts, weights, strict=True))
            expected = sum(weight * made["parts"][part] for part, weight in zip(parts, weights, strict=True))
            assert made["results"][f"eval/both/{metric}"] == pytest.approx(expected), metric
            assert made["intervals"][f"eval/both/{metric}"][0] <= expected <= made["intervals"][f"eval/both/{metric}"][1]
        assert made["chance"]["eval/both/acc_bytes"] == pytest.approx(1 / 3)


def test_groups_are_compared_by_the_questions_of_their_tasks(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another model, whose differences are those of the two scores."""
    import torch
    import transformers

    torch.manual_seed(1)
    other = tmp_path / "step_50"
    config = transformers.AutoConfig.from_pretrained(plain_model)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(plain_model).save_pretrained(other)
    write_task("colours", COLOURS)
    write_task("few", COLOURS[:2])
    (tmp_path / "tasks" / "both.yaml").write_text(
        "group: both\ntask: [colours, few]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    suite = write_suite([{"name": "both"}])
    assert run(plain_model, suite, tmp_path / "a") == run(other, suite, tmp_path / "b") == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]) == 0
    assert not capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["differences"]["b"]
    assert found.keys() == {f"eval/both/{name}" for name in ("acc", *NAMED_METRICS)}
    for name, apart in found.items():
        sides = [record(tmp_path / side)["results"][name] for side in "ab"]
        assert [apart["first"], apart["other"]] == pytest.approx(sides) and apart["questions"] == 10
        assert apart["interval"][0] <= sides[1] - sides[0] <= apart["interval"][1]
    assert found["eval/both/gold_bits_per_byte"]["interval"][0] != found["eval/both/gold_bits_per_byte"]["interval"][1]


def test_a_group_without_a_score_of_its_own_gives_those_of_its_tasks(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("colours", "again"):
        write_task(name, COLOURS)
    (tmp_path / "tasks" / "both.yaml").write_text("group: both\ntask: [colours, again]\n")
    assert run(plain_model, write_suite([{"name": "both", "metrics": ["acc"]}]), tmp_path / "out") == 0
    assert record(tmp_path / "out")["results"].keys() == {"eval/colours/acc", "eval/again/acc"}
    assert run(plain_model, write_suite([{"name": "both", "form": "mcf"}]), tmp_path / "mcf") == 2
    assert "tasks: both is a group; form: mcf is for a task alone" in capsys.readouterr().err
