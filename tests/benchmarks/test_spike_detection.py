"""The benchmark of spike detection measures what it says, and its record is that of the defaults in force."""

import statistics
from pathlib import Path

import pytest

from benchmarks import spike_detection
from benchmarks.spike_detection import DEFAULTS, Curve, Place, detected, false_alarms, read, record
from benchmarks.spike_detection_report import BEFORE, table

RESULTS = Path(spike_detection.__file__).parent.parent / "docs" / "results" / "spike_detection.md"


def level(steps: int, loss: float = 2.0) -> Curve:
    """Losses and norms that go up and down by a hundredth and a tenth."""
    return Curve([loss + 0.01 * (-1) ** n for n in range(steps)], [0.3 + 0.03 * (-1) ** n for n in range(steps)])


@pytest.fixture
def place() -> Place:
    curve = level(128)
    return Place(0, curve.losses, curve.norms)


def test_the_recorded_curve_gives_the_false_alarms_that_the_record_states() -> None:
    curve, text = read(), RESULTS.read_text()
    assert len(curve.losses) == len(curve.norms) == 3900
    for name, config in (("before", BEFORE), ("defaults", DEFAULTS)):
        loss, norm = false_alarms(curve, config)
        assert f"| {name} | as recorded | {loss:.1f} | {norm:.1f} |" in text
    assert false_alarms(curve, DEFAULTS) == (0.0, 0.0)
    assert false_alarms(curve, BEFORE)[1] > 10


def test_a_smaller_noise_keeps_the_trend_and_scales_the_rest() -> None:
    curve = read()
    quiet = curve.with_noise(1 / 8)
    whole, small = (statistics.pstdev(one.losses[3000:3128]) for one in (curve, quiet))
    assert small == pytest.approx(whole / 8, rel=0.05)
    for first in range(0, 3900, 650):
        mean, same = (statistics.fmean(one.losses[first : first + 650]) for one in (curve, quiet))
        assert same == pytest.approx(mean, abs=0.05)
    assert curve.with_noise(1.0).losses == pytest.approx(curve.losses)


@pytest.mark.parametrize(
    ("rises", "outcome"),
    [
        ([0.0] * 20, (False, False)),
        ([0.04], (False, False)),
        ([0.1], (True, False)),
        ([0.1] * 9 + [0.0], (True, False)),
        ([0.1] * 10, (True, True)),
        ([0.001 * n for n in range(200)], (False, False)),
    ],
)
def test_rises_are_found_by_their_height_and_roll_back_by_their_length(
    place: Place, rises: list[float], outcome: tuple[bool, bool]
) -> None:
    assert detected(level(200), DEFAULTS, place, rises) == outcome


def test_the_same_rise_was_missed_before(place: Place) -> None:
    assert detected(level(1), BEFORE, place, [0.15]) == (False, False)
    assert detected(level(1), DEFAULTS, place, [0.15]) == (True, False)


def test_a_recorded_run_is_read_back(tmp_path: Path) -> None:
    lines = [f'{{"step": {n}, "train/loss": {n}.5, "train/grad_norm": 0.25}}\n' for n in range(1, 121)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    kept = tmp_path / "recorded" / "run.csv"
    record(tmp_path, "python pretrain_smol.py ...", kept)
    assert kept.read_text().startswith("# python pretrain_smol.py ...\n")
    assert read(kept) == Curve([n + 0.5 for n in range(101, 121)], [0.25] * 20), "the warm-up is left out"


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
