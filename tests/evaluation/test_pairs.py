"""Differences on the same questions: smaller noise than two intervals, seeds beside questions, ratios, who wins."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import NAME, result, write_samples

from evaluation.pairs import difference


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
    for name, gain in (("a", 0.0), ("b", 10.0)):
        (tmp_path / name).mkdir()
        write_samples(tmp_path / name, [{"bits": [-100.0 * n + gain, 100 * n]} for n in range(1, 30)])
    apart = difference("eval/task/bits", [tmp_path / "a"], [tmp_path / "b"], higher_is_better=False)
    total = -10 * 29 / sum(100 * n for n in range(1, 30)) / np.log(2)
    assert apart and apart.first == pytest.approx(1 / np.log(2)) and apart.value == pytest.approx(total)
    low, high = apart.interval
    assert low < total < high < 0 and high - low < 0.6 * -total
    assert apart.said(False) == "better" and apart.win_rate == 1


def test_a_score_of_one_of_several_filters_is_found(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        write_samples(tmp_path / name, [{"exact": value}] * 5)
    first, other = [tmp_path / "a"], [tmp_path / "b"]
    apart = difference("eval/task/exact_none", first, other, higher_is_better=True)
    assert apart and apart.value == 1
    assert difference("eval/task/exact_strict", first, other, higher_is_better=True) is None
