"""Differences on the same questions: smaller noise than two intervals, seeds beside questions, ratios, groups, who wins."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_parts import NAME, result, write_samples

from evaluation.pairs import difference


def answered(folder: Path, metric: str, scores: list[Any], statistic: str | None) -> list[Path]:
    """A side of one seed whose questions have these scores."""
    name = f"eval/task/{metric}"
    path = result(folder, 1, {name: 0.0}, statistics={name: statistic} if statistic else {})
    write_samples(path, [{metric: score} for score in scores])
    return [path]


def side(folder: Path, right: np.ndarray) -> list[Path]:
    return [result(folder, 1, {NAME: float(right.mean())}, list(right))]


def test_the_same_questions_that_gained_are_a_difference_beyond_doubt(tmp_path: Path) -> None:
    """The two scores' own intervals, 0.1 wide, overlap."""
    draw = np.random.default_rng(0)
    before = (draw.random(400) < 0.5).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:16]] = 1
    first, other = side(tmp_path / "a", before), side(tmp_path / "b", after)
    apart = difference(NAME, first, other, higher_is_better=True)
    assert apart and (apart.first, apart.other, apart.questions) == (before.mean(), after.mean(), 400)
    low, high = apart.interval
    assert apart.value == pytest.approx(0.04) and 0 < low < 0.04 < high < 0.07
    assert apart.said(True) == "better" and apart.said(False) == "worse"
    assert apart.win_rate == (16 + 384 / 2) / 400
    alike = difference(NAME, first, first, higher_is_better=True)
    assert alike and alike.interval == (0, 0) and alike.said(True) == "same" and alike.win_rate == 0.5


def test_an_interval_holds_the_truth_nineteen_times_in_twenty(tmp_path: Path) -> None:
    """Of two models with 60 % and 70 %, whose questions have difficulties of their own."""
    held = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        hard = draw.random(150)
        right = [(hard + draw.normal(0, 0.1, 150) < share).astype(float) for share in (0.6, 0.7)]
        sides = [side(tmp_path / f"{trial}-{number}", each) for number, each in enumerate(right)]
        apart = difference(NAME, *sides, higher_is_better=True)
        assert apart
        held += apart.interval[0] <= 0.1 <= apart.interval[1]
    assert 180 <= held <= 199


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path) -> None:
    """One seed of three gained all: the questions alone would call that sure."""
    none, all_right = np.zeros(100), np.ones(100)
    first = side(tmp_path / "a", none)
    seeds = [side(tmp_path / f"b{number}", right)[0] for number, right in enumerate((none, none, all_right))]
    apart = difference(NAME, first, seeds, higher_is_better=True)
    assert apart and apart.value == pytest.approx(1 / 3) and apart.said(True) == "same"
    agreeing = difference(NAME, first, [seeds[2], seeds[2]], higher_is_better=True)
    assert agreeing and agreeing.said(True) == "better"


def test_models_that_were_made_from_one_another_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """Each gained as much, from levels that lie far apart."""
    levels = [np.arange(200) < share for share in (40, 100, 160)]
    first = [side(tmp_path / f"a{number}", level.astype(float))[0] for number, level in enumerate(levels)]
    gained = [np.roll(level, 10) | level for level in levels]
    other = [side(tmp_path / f"b{number}", level.astype(float))[0] for number, level in enumerate(gained)]
    free = difference(NAME, first, other, higher_is_better=True)
    paired = difference(NAME, first, other, higher_is_better=True, paired_seeds=True)
    assert free and paired and free.value == paired.value == pytest.approx(0.05)
    assert free.said(True) == "same" and paired.said(True) == "better" and 0.02 < paired.interval[0] < 0.05
    shuffled = difference(NAME, first, other[::-1], higher_is_better=True, paired_seeds=True)
    assert shuffled and shuffled.said(True) == "same", "not made from those at their places"


def test_what_only_one_side_was_asked_is_left_out(tmp_path: Path) -> None:
    first, other = side(tmp_path / "a", np.ones(10)), side(tmp_path / "b", np.zeros(10))
    path = other[0] / "samples" / "task.jsonl"
    path.write_text(path.read_text().replace('"row 7"', '"another row"'))
    apart = difference(NAME, first, other, higher_is_better=True)
    assert apart and apart.questions == 9
    path.write_text(json.dumps(json.loads(path.read_text().splitlines()[0]) | {"question": 1}) + "\n")
    assert difference(NAME, first, other, higher_is_better=True) is None
    assert difference("eval/other/acc", first, other, higher_is_better=True) is None


def test_the_difference_of_bits_per_byte_is_of_all_bytes(tmp_path: Path) -> None:
    first, other = (
        answered(tmp_path / name, "bits", [[-100.0 * n + gain, 100 * n] for n in range(1, 30)], "bits")
        for name, gain in (("a", 0.0), ("b", 10.0))
    )
    apart = difference("eval/task/bits", first, other, higher_is_better=False)
    total = -10 * 29 / sum(100 * n for n in range(1, 30)) / np.log(2)
    assert apart and apart.first == pytest.approx(1 / np.log(2)) and apart.value == pytest.approx(total)
    low, high = apart.interval
    assert low < total < high < 0 and high - low < 0.6 * -total
    assert apart.said(False) == "better" and apart.win_rate == 1


def test_the_difference_of_perplexities_is_one_of_exponentials(tmp_path: Path) -> None:
    """Of log-likelihoods alone, as lambada's, and of (log-likelihood, words)."""
    for kind, scores in (("of_answers", [-1.0] * 20), ("of_words", [[-3.0, 3]] * 20)):
        first = answered(tmp_path / kind / "a", "ppl", scores, "perplexity")
        other = answered(tmp_path / kind / "b", "ppl", [-2.0 if kind == "of_answers" else [-6.0, 3]] * 20, "perplexity")
        apart = difference("eval/task/ppl", first, other, higher_is_better=False)
        assert apart and (apart.first, apart.other) == pytest.approx((math.e, math.e**2)) and apart.win_rate == 0
        assert apart.interval == pytest.approx((math.e**2 - math.e,) * 2) and apart.said(False) == "worse"


def test_the_difference_of_shares_weighs_a_question_by_what_it_asks_for(tmp_path: Path) -> None:
    """IFEval's scores by instruction: a list a question."""
    first = answered(tmp_path / "a", "inst", [[True], [False, False, False], [True, True]] * 30, "share")
    other = answered(tmp_path / "b", "inst", [[True], [True, True, False], [True, True]] * 30, "share")
    apart = difference("eval/task/inst", first, other, higher_is_better=True)
    assert apart and (apart.first, apart.other) == (3 / 6, 5 / 6) and apart.questions == 90
    assert apart.win_rate == pytest.approx(2 / 3) and apart.said(True) == "better"


def test_what_is_no_statistic_is_not_compared(tmp_path: Path) -> None:
    """F1's pairs of right answer and answer look like log-likelihoods and units."""
    f1 = [answered(tmp_path / name, "f1", [[1, 1], [0, 1]] * 10, None) for name in ("a", "b")]
    assert difference("eval/task/f1", *f1, higher_is_better=True) is None
    mean = answered(tmp_path / "c", "f1", [1.0, 0.0] * 10, "mean")
    assert difference("eval/task/f1", f1[0], mean, higher_is_better=True) is None


def test_a_groups_questions_are_pooled_by_the_weights_of_its_tasks(tmp_path: Path) -> None:
    """One task of 100 questions gained 20, one of 300 lost 30; errors of the tasks are independent."""
    parts = {"eval/few/acc": 0.25, "eval/many/acc": 0.75}
    of_group = {"groups": {"eval/all/acc": parts}, "statistics": dict.fromkeys(parts, "mean")}

    def model(name: str, few: int, many: int) -> list[Path]:
        path = result(tmp_path / name, 1, {"eval/all/acc": 0.0}, **of_group)
        for task, right, size in (("few", few, 100), ("many", many, 300)):
            write_samples(path, [{"acc": float(number < right)} for number in range(size)], task)
        return [path]

    first, other = model("a", 50, 150), model("b", 70, 120)
    apart = difference("eval/all/acc", first, other, higher_is_better=True)
    assert apart and (apart.first, apart.other) == pytest.approx((0.5, 0.475)) and apart.questions == 400
    assert apart.win_rate == pytest.approx(0.25 * 0.6 + 0.75 * 0.45)
    low, high = apart.interval
    deviation = math.sqrt((0.25 * 0.4) ** 2 / 100 + (0.75 * 0.3) ** 2 / 300)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    (other[0] / "samples" / "few.jsonl").unlink()
    assert difference("eval/all/acc", first, other, higher_is_better=True) is None


def test_a_score_of_one_of_several_filters_is_found(tmp_path: Path) -> None:
    found = {"statistics": {"eval/task/exact_none": "mean", "eval/task/exact_strict": "mean"}}
    first, other = [[result(tmp_path / name, 1, {}, **found)] for name in ("a", "b")]
    for (folder,), value in ((first, 0.0), (other, 1.0)):
        write_samples(folder, [{"exact": value}] * 5)
    apart = difference("eval/task/exact_none", first, other, higher_is_better=True)
    assert apart and apart.value == 1
    assert difference("eval/task/exact_strict", first, other, higher_is_better=True) is None
