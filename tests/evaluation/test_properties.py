"""`properties`: each of the four found where it is and missed where it is not; differences paired by question; refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import NAME, result

from evaluation.__main__ import main
from evaluation.properties import judge, rank_correlation, read_runs


def curve(folder: Path, values: list[float], name: str = NAME) -> str:
    for step, value in enumerate(values, start=1):
        result(folder, step * 100, {name: value})
    return str(folder)


def test_a_task_that_rises_above_noise_and_chance_has_three_properties(tmp_path: Path) -> None:
    verdict = judge(NAME, read_runs([curve(tmp_path / "a", [0.25, 0.35, 0.45, 0.6])]))
    assert verdict.monotone == pytest.approx(1) and not verdict.seeds
    assert verdict.noise == pytest.approx(0.01), "a quarter of the interval"
    assert verdict.low_noise == pytest.approx(35) and verdict.above_chance == pytest.approx(35)
    assert verdict.stable_ranking is None and verdict.passes() == [True, True, True, None]


def test_a_task_at_chance_that_goes_up_and_down_has_none(tmp_path: Path) -> None:
    verdict = judge(NAME, read_runs([curve(tmp_path / "a", [0.26, 0.24, 0.27, 0.25])]))
    assert verdict.passes() == [False, False, False, None]


def test_scores_where_lower_is_better_are_turned_round(tmp_path: Path) -> None:
    verdict = judge("eval/task/bits", read_runs([curve(tmp_path / "a", [3.0, 2.5, 2.0], "eval/task/bits")]))
    assert verdict.monotone == pytest.approx(1) and verdict.low_noise == pytest.approx(100)
    assert verdict.above_chance is None, "chance is not known"


def test_noise_is_over_seeds_where_a_model_has_several(tmp_path: Path) -> None:
    given = [f"base={curve(tmp_path / name, values)}" for name, values in (("a", [0.2, 0.5]), ("b", [0.4, 0.9]))]
    verdict = judge(NAME, read_runs(given))
    assert verdict.seeds
    assert verdict.noise == pytest.approx(np.sqrt((np.var([0.2, 0.4], ddof=1) + np.var([0.5, 0.9], ddof=1)) / 2))
    assert verdict.low_noise == pytest.approx((0.3 + 0.5) / 2 / verdict.noise)


def test_a_ranking_is_stable_when_the_leader_stays_ahead(tmp_path: Path) -> None:
    stable = [curve(tmp_path / name, values) for name, values in (("a", [0.3, 0.4, 0.5]), ("b", [0.2, 0.3, 0.4]))]
    assert judge(NAME, read_runs(stable)).stable_ranking == 1
    turned = [*stable[:1], curve(tmp_path / "c", [0.5, 0.3, 0.6])]
    verdict = judge(NAME, read_runs(turned))
    assert verdict.stable_ranking == -1 and verdict.passes()[3] is False


def test_rank_correlation_is_spearmans_with_ties() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 2, 3]) == pytest.approx(0.948683298)  # of scipy.stats.spearmanr
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, share in ((100, 0.25), (200, 0.5), (300, 0.75)):
        result(tmp_path / "run", step, {NAME: share}, [1.0] * int(400 * share) + [0.0] * int(400 * (1 - share)))
    assert main(["properties", f"base={tmp_path / 'run'}", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "eval/task/acc  1.00 yes  50.00 yes     50.00 yes               -  0.0100  questions" in out
    assert "100 to 200" in out and "200 to 300" in out and out.count(" better") == 2
    written = json.loads((tmp_path / "out" / "properties.json").read_text())[NAME]
    assert written["passes"] == {"monotone": True, "low noise": True, "above chance": True, "stable ranking": None}
    assert (tmp_path / "out" / "properties.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(sentence: str, *folders: Path) -> None:
        assert main(["properties", *map(str, folders), "--output", str(tmp_path / "out")]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()

    result(tmp_path / "one", 100, {NAME: 0.3})
    refused(f"{tmp_path / 'one'} has results of 1 checkpoints; two are needed", tmp_path / "one")
    result(tmp_path / "nameless", None, {NAME: 0.3})
    refused("results.json says no step; score checkpoints whose folder says it", tmp_path / "nameless")
    result(tmp_path / "twice" / "a", 100, {NAME: 0.3})
    result(tmp_path / "twice" / "b", 100, {NAME: 0.3})
    refused(f"{tmp_path / 'twice'} has two results of step 100; give each run a folder of its own", tmp_path / "twice")
    runs = Path(curve(tmp_path / "a", [0.3, 0.4])), Path(curve(tmp_path / "b", [0.3, 0.4], "eval/other/acc"))
    refused("the results have no score in common; score all checkpoints with the same suite", *runs)
    assert main(["properties", str(runs[0]), "--output", str(runs[0])]) == 2
    assert "is there already; give a new folder" in capsys.readouterr().err
