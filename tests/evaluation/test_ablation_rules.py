"""The rule of noise, what a run's folder says, what a promoted configuration holds: on numbers and files made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.ablations.noise import compare, spread
from evaluation.ablations.promote import difference
from evaluation.ablations.run_folder import outcome, tokens_trained
from smol_config import mapping_to_yaml, merge_files

# --- noise -------------------------------------------------------------------------------------------------------------------


def test_the_band_is_students_t_times_the_spread_of_seeds() -> None:
    """Three seeds of the baseline, one of the change: 4.303 x 0.1 x sqrt(1 + 1/3)."""
    baseline = [3.9, 4.0, 4.1]
    for change, verdict in {4.49: "within noise", 4.51: "worse", 3.51: "within noise", 3.49: "better"}.items():
        found = compare({"baseline": baseline, "other": [change]}, "baseline", "other", higher_is_better=False)
        assert found and found.verdict == verdict
        assert found.band == pytest.approx(4.3027 * 0.1 * (4 / 3) ** 0.5, rel=1e-4)
        assert found.difference == pytest.approx(change - 4.0)
    accuracy = compare({"baseline": baseline, "other": [4.6]}, "baseline", "other", higher_is_better=True)
    assert accuracy and accuracy.verdict == "better"


def test_all_arms_with_several_seeds_tell_of_the_noise() -> None:
    scores = {"baseline": [1.0, 1.2], "a": [5.0, 5.2], "b": [7.0], "none": []}
    assert spread(scores) == (pytest.approx(0.02**0.5), 2)
    assert spread({"baseline": [1.0], "a": [2.0]}) == (None, 0)
    unknown = compare({"baseline": [1.0], "a": [2.0]}, "baseline", "a", higher_is_better=False)
    assert unknown and (unknown.verdict, unknown.band) == ("noise unknown", None)
    assert compare(scores, "baseline", "none", higher_is_better=False) is None


def test_a_change_that_does_nothing_falls_outside_the_band_once_in_twenty_times() -> None:
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(2000):
        scores = {arm: list(random.normal(size=size)) for arm, size in {"baseline": 3, "a": 2, "b": 1}.items()}
        verdicts += [compare(scores, "baseline", arm, higher_is_better=True) for arm in ("a", "b")]
    outside = np.mean([found is not None and found.verdict != "within noise" for found in verdicts])
    assert outside == pytest.approx(0.05, abs=0.01)  # three standard errors of 2,000 sweeps


# --- a run's folder ----------------------------------------------------------------------------------------------------------


def write_run(folder: Path, losses: list[float | None], *alerts: tuple[str, str], whole: int = 0, first: int = 1) -> Path:
    folder.mkdir()
    speed = {"perf/tokens_per_second": 200.0, "perf/tokens_per_second_per_device": 100.0}
    lines = [{"step": n, "tokens": 10 * n, "train/loss": loss, **speed} for n, loss in enumerate(losses, first)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "tok')
    (folder / "alerts.jsonl").write_text("".join(json.dumps({"event": e, "text": t}) + "\n" for e, t in alerts))
    if whole:
        (folder / f"iter_{whole:07d}").mkdir()
        (folder / f"iter_{whole:07d}" / "COMPLETE").write_text("")
    return folder


FALLING: list[float | None] = [8 - n / 10 for n in range(40)]
RUNS: dict[str, tuple[dict[str, Any], str, str]] = {
    "done": ({"losses": FALLING, "whole": 40}, "done", ""),
    "not a number": ({"losses": [*FALLING[:-1], None], "whole": 40}, "diverged", "the loss of step 40 is not a number"),
    "above the start": ({"losses": [8 + n / 10 for n in range(40)], "whole": 40}, "diverged", "above 9.900 at the start"),
    "a NaN on the way": ({"losses": [*FALLING[:30], None, *FALLING[31:]], "whole": 40}, "done", ""),
    "killed": ({"losses": FALLING[:20], "whole": 10}, "waiting", "to go on from step 10"),
    "nothing": ({"losses": []}, "waiting", "not trained yet"),
}
ENDS = {
    "by a signal": ([("started", ""), ("stopped", "saved; exit code 85")], "waiting", "to go on from step 10"),
    "by a person": ([("started", ""), ("stopped", "saved; exit code 93")], "stopped", "saved; exit code 93"),
    "spikes": ([("rollback", ""), ("stopped", "exit code 93")], "diverged", "the trainer gave up after loss spikes"),
    "crash": ([("started", ""), ("crashed", "RuntimeError: no memory")], "failed", "RuntimeError: no memory"),
    "crash, then again": ([("crashed", "x"), ("resumed", "")], "waiting", "to go on from step 10"),
}


@pytest.mark.parametrize("case", RUNS)
def test_losses_say_whether_a_run_is_done_or_has_diverged(case: str, tmp_path: Path) -> None:
    files, state, reason = RUNS[case]
    found = outcome(write_run(tmp_path / "run", **files), 40)
    assert found.state == state and reason in found.reason


@pytest.mark.parametrize("case", ENDS)
def test_alerts_say_how_a_run_ended_that_is_not_whole(case: str, tmp_path: Path) -> None:
    alerts, state, reason = ENDS[case]
    found = outcome(write_run(tmp_path / "run", FALLING[:20], *alerts, whole=10), 40)
    assert found.state == state and reason in found.reason


def test_a_trainer_that_never_began_left_its_log(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("Traceback\nerror: train.sed: unknown key\nTraceback\nChildFailedError\n")
    assert outcome(tmp_path, 40).reason == "error: train.sed: unknown key"
    (tmp_path / "train.log").write_text("")
    assert outcome(tmp_path, 40).reason.endswith("train.log is empty")


def test_costs_are_of_the_runs_own_tokens(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", FALLING, whole=140, first=101)
    numbers = outcome(run, 140).numbers
    assert numbers["tokens"] == 400, "an annealed run counts on from its checkpoint"
    assert numbers["loss"] == pytest.approx(sum(x for x in FALLING[-20:] if x) / 20)
    assert (numbers["devices"], numbers["device_hours"]) == (2, pytest.approx(400 / 200 * 2 / 3600))
    assert "gpu_hours" not in numbers, "no GPU was there"
    assert tokens_trained(run) == 1400 and tokens_trained(tmp_path) == 0


# --- the next baseline -------------------------------------------------------------------------------------------------------


def test_what_differs_from_a_base_makes_the_whole_again(tmp_path: Path) -> None:
    """Also where an override replaced a section, took a key away or reached into a list."""
    before = {
        "optim": {"schedule": {"kind": "wsd", "decay_steps": 40}, "rate": 1},
        "model": {"no_rope": 4},
        "stages": [{"a": 1}, 2],
    }
    (tmp_path / "base.yaml").write_text(mapping_to_yaml(before))
    overrides = ["optim.schedule={kind: cosine}", "model.no_rope=null", "stages.0.a=${SIZE}", "new.key=[1, 2]"]
    after = merge_files(tmp_path / "base.yaml", overrides)
    found = difference(before, after)
    assert "rate" not in found["optim"]
    (tmp_path / "next.yaml").write_text(mapping_to_yaml({"base": "base.yaml", **found}))
    assert merge_files(tmp_path / "next.yaml") == after
