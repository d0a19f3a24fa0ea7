"""`fit`: laws that made the numbers are found again; predictions with their uncertainty; what does not fix a law is refused."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import scaling_laws
from evaluation.__main__ import main
from evaluation.scaling_laws import Best, LossLaw, Point, best_settings, fit_loss, fit_power, interval, resampled_laws

KNOWN = LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""Besiroglu et al. 2024: what Hoffmann's data give."""
SIZES, LENGTHS = np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 5)


def runs(noise: float = 0.0, seed: int = 0) -> list[Point]:
    random = np.random.default_rng(seed)
    return [Point(float(n), float(d), KNOWN.loss(n, d) * math.exp(random.normal(0, noise))) for n in SIZES for d in LENGTHS]


def test_the_law_that_made_the_losses_is_found() -> None:
    assert fit_loss(runs()) == pytest.approx(KNOWN, rel=1e-3)


def test_with_noise_and_outliers_it_is_found_within_its_uncertainty(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 % of noise and one run that is 10 % too high, which least squares would follow: Huber's loss does not."""
    monkeypatch.setattr(scaling_laws, "RESAMPLES", 60)
    points = runs(noise=0.001)
    points[7] = points[7]._replace(loss=1.1 * points[7].loss)
    law = fit_loss(points)
    assert law.irreducible == pytest.approx(KNOWN.irreducible, abs=0.04)
    assert (law.alpha, law.beta) == (pytest.approx(KNOWN.alpha, abs=0.03), pytest.approx(KNOWN.beta, abs=0.03))
    laws = resampled_laws(points, law)
    for size, length in ((7e9, 1.4e11), (1e8, 2e9)):
        low, high = interval([one.loss(size, length) for one in laws])
        assert low < KNOWN.loss(size, length) < high and high - low < 0.03 * KNOWN.loss(size, length)
    low, high = interval([one.beta / (one.alpha + one.beta) for one in laws])
    assert low < KNOWN.beta / (KNOWN.alpha + KNOWN.beta) < high


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.2], ids=["the same loss", "larger is worse", "longer is worse"])
def test_losses_that_follow_no_law_give_numbers_all_the_same(slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a term is nothing, or an exponent could be anything, the fit ends: it overflowed."""
    monkeypatch.setattr(scaling_laws, "RESAMPLES", 20)
    sizes, lengths = SIZES[:3] / SIZES[1], LENGTHS[:3] / LENGTHS[1]
    points = [Point(1e6 * n, 1e7 * d, 3 * (n if slope > 0 else d) ** abs(slope)) for n in sizes for d in lengths]
    law = fit_loss(points)
    for one in [law, *resampled_laws(points, law)]:
        assert all(math.isfinite(value) and value > 0 for value in [*one, one.loss(1e6, 1e7), *one.allocation(1e14)])


def test_the_allocation_is_the_least_loss_that_the_compute_buys() -> None:
    compute = 5.76e23
    n, d = KNOWN.allocation(compute)
    assert 6 * n * d == pytest.approx(compute)
    for factor in (0.9, 1.1):
        assert KNOWN.loss(n * factor, d / factor) > KNOWN.loss(n, d)


def tried(values: list[float], compute: float, best: float, setting: str = "learning_rate") -> list[Point]:
    """Losses on a parabola in the setting's logarithm; tokens that steps do not divide evenly."""
    n = math.sqrt(compute / 120)
    points = [Point(n, 20 * n * (1 + at / 1000), 3 + math.log(value / best) ** 2) for at, value in enumerate(values)]
    return [point._replace(**{setting: value}) for point, value in zip(points, values, strict=True)]


@pytest.mark.parametrize("setting", ["learning_rate", "batch_tokens"])
def test_the_bests_lie_on_the_power_law_that_made_them(setting: str) -> None:
    """DeepSeek LLM's, of rate and batch."""
    coefficient, exponent = {"learning_rate": (0.3118, -0.125), "batch_tokens": (0.2920, 0.3271)}[setting]
    other = {"learning_rate": "batch_tokens", "batch_tokens": "learning_rate"}[setting]
    points = []
    for compute in (1e17, 1e18, 1e19):
        best = coefficient * compute**exponent
        points += tried([best * factor for factor in (0.3, 0.6, 1.3, 2.5)], compute, best, setting)
    best = coefficient * 1e20**exponent
    points += tried([best / 10, best / 5, best / 2.5], 1e20, best, setting)
    found = best_settings(points, setting)
    assert [one.at_edge for one in found] == [False, False, False, True], "the last best lies beyond what was tried"
    law = fit_power(found)
    assert law and law.exponent == pytest.approx(exponent, abs=1e-3)
    assert law.at(1e20) == pytest.approx(best, rel=0.01)
    assert fit_power(found[2:]) is None and best_settings(points, other) == []


def test_the_exponents_interval_holds_the_true_one_nineteen_times_in_twenty() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(1000):
        noise = random.normal(0, 0.2, size=5)
        bests = [Best(c, 2 * c**0.3 * math.exp(e), False) for c, e in zip(np.geomspace(1e17, 1e21, 5), noise, strict=True)]
        law = fit_power(bests)
        assert law and law.exponent_interval
        low, high = law.exponent_interval
        held.append(low < 0.3 < high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)  # three standard errors
    two = fit_power(bests[:2])
    assert two and two.exponent_interval is None


# --- the command -------------------------------------------------------------------------------------------------------------


def write_csv(path: Path, points: list[Point]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, Point._fields)
        writer.writeheader()
        writer.writerows(point._asdict() for point in points)
    return path


def write_results(path: Path, points: list[Point]) -> Path:
    made: list[dict[str, Any]] = [
        {
            "arm": f"a{at}",
            "state": "done",
            "parameters": p.parameters,
            "tokens": p.tokens,
            "loss": 9,
            "scores": {"eval/loss/x": p.loss},
        }
        for at, p in enumerate(points)
    ]
    made.append({**made[0], "state": "diverged"})
    path.write_text(json.dumps({"runs": made}))
    return path


def test_the_command_reads_sweeps_and_tables_predicts_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling_laws, "RESAMPLES", 20)
    sweep, table = write_results(tmp_path / "results.json", runs()[:20]), write_csv(tmp_path / "runs.csv", runs()[20:])
    command = ["fit", str(sweep), str(table), "--score", "eval/loss/x", "--output", str(tmp_path / "laws")]
    assert main([*command, "--parameters", "1e9", "--tokens", "2e10", "--compute", "1e24"]) == 0
    record = json.loads((tmp_path / "laws" / "laws.json").read_text())
    assert record["runs"] == 30
    assert record["loss"]["E"]["value"] == pytest.approx(KNOWN.irreducible, rel=1e-3)
    one, best = record["predictions"]
    assert one["loss"] == pytest.approx(KNOWN.loss(1e9, 2e10), rel=1e-4)
    assert (best["parameters"], best["tokens"]) == pytest.approx(KNOWN.allocation(1e24), rel=0.01)
    said = capsys.readouterr().out
    assert "1 of 21 runs left out, which are not done" in said and "this is an extrapolation" in said
    assert (tmp_path / "laws" / "laws.png").stat().st_size > 10_000
    assert main(command) == 2
    assert "laws is there already; give a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(("setting", "at_1e17"), [("learning_rate", 2e-3), ("batch_tokens", 5e5)])
def test_one_setting_alone_gives_a_power_law_and_no_loss_law(
    setting: str, at_1e17: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [at_1e17 / 2, at_1e17, at_1e17 * 2]
    points = tried(values, 1e17, at_1e17, setting) + tried(values, 1e19, 0.75 * at_1e17, setting)
    table = write_csv(tmp_path / "runs.csv", points)
    assert main(["fit", str(table), "--compute", "1e18", "--output", str(tmp_path / "laws")]) == 0
    said = capsys.readouterr().out
    assert "no loss law: 6 runs of 2 sizes and 6 lengths do not fix a loss law" in said
    [prediction] = json.loads((tmp_path / "laws" / "laws.json").read_text())["predictions"]
    assert prediction[setting] == pytest.approx(at_1e17 * math.sqrt(0.75), rel=0.02)
    assert f"\n{setting} = " in said and "95 % of the exponent: not known from two computes" in said

    size = points[0].parameters  # the same again, on more tokens: still no loss law
    longer = tried(values, 1e18, 0.8 * at_1e17, setting)  # not quite on the line
    points += [point._replace(parameters=size, tokens=point.tokens * point.parameters / size) for point in longer]
    assert main(["fit", str(write_csv(table, points)), "--output", str(tmp_path / "three")]) == 0
    low, high = json.loads((tmp_path / "three" / "laws.json").read_text())[setting]["law"]["exponent_interval"]
    assert low < math.log(0.75) / math.log(100) < high
    assert f"95 % of the exponent: {low:.4f} .. {high:.4f}" in capsys.readouterr().out


FAULTS: dict[str, tuple[str, list[str], str]] = {
    "no file": ("", [], "runs.csv cannot be read as results (["),
    "no results": ('{"run": 1}', [], "cannot be read as results ('runs'); give a results.json of ablate, or a .csv"),
    "no number": ("parameters,tokens,loss\n1e9,many,3\n", [], "run 1: tokens is 'many', no number; every run needs"),
    "no column": ("parameters,tokens\n1e9,1e9\n", [], "run 1: loss is None, no number"),
    "infinite": ("parameters,tokens,loss\n1e9,1e9,inf\n", [], "run 1: loss is inf; it must be above 0 and finite"),
    "half a run": ("parameters,tokens,loss\n1e9,1e9,3\n", ["--tokens", "1e9"], "give both, or --compute alone"),
    "too little": ("parameters,tokens,loss\n1e9,1e9,3\n", [], "1 runs of 1 sizes and 1 lengths do not fix a loss law"),
    "nothing": ("parameters,tokens,loss\n", [], "0 runs of 0 sizes and 0 lengths do not fix a loss law"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_fixes_no_law_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, options, expected = FAULTS[case]
    path = tmp_path / ("results.json" if text.startswith("{") else "runs.csv")
    if text:
        path.write_text(text)
    assert main(["fit", str(path), *options, "--output", str(tmp_path / "laws")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "laws").exists()


def test_an_unknown_score_and_a_number_that_is_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_results(tmp_path / "results.json", runs()[:3])
    assert main(["fit", str(sweep), "--score", "eval/loss/y", "--output", str(tmp_path / "laws")]) == 2
    assert "--score 'eval/loss/y' is no score of a0" in capsys.readouterr().err
    for text, expected in {"much": "'much' is not a number", "-1": "-1 must be above 0 and finite"}.items():
        with pytest.raises(SystemExit):
            main(["fit", str(sweep), f"--compute={text}", "--output", str(tmp_path / "laws")])
        assert expected in capsys.readouterr().err
